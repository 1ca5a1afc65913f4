# `make` lists what there is. Every target does its own set-up; docs/testing.md explains the tiers.
.PHONY: help setup build demo test check testbed testbed-down bench fuzz install clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Debian packages that are missing (needs root)
	@scripts/setup

build: setup ## build and lay out everything in target/casemate
	@scripts/build

demo: ## the main job, here if this host can run Linux guests, else in the testbed
	@scripts/demo

test: ## every test: unit, layers, kvm, testbed; ends with one summary line
	@scripts/test unit layers kvm testbed

check: setup ## fmt, clippy as errors, layers, unit, policies
	@scripts/check

testbed: ## build and boot the testbed (SELinux enforcing, KVM), leave it up
	@scripts/setup
	@testbed/testbed up

testbed-down: ## stop the testbed
	@testbed/testbed down

bench: build ## figures: start, memory, bursts, cost of each step, beside a baseline
	@scripts/bench

fuzz: ## fuzz the decoders and devices for a minute each
	@scripts/fuzz

install: build ## install to /usr/bin, /usr/libexec/casemate, /usr/share/casemate
	@scripts/install

clean: ## remove what was built; keeps the testbed's downloads
	@rm -rf target .cache/casemate
