//! A runner that is not what it should be: it lies, says nothing, is another program, or is none. The warden looks for
//! itself, names the layer, and no guest instruction runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use casemate_tests::guest;
use casemate_tests::jail::Host;
use casemate_wire::codec;
use casemate_wire::jailer::Failure;
use casemate_wire::record::{ExitCause, Finding};
use casemate_wire::runner::FromRunner;
use libtest_mimic::{Failed, Trial};

use crate::jailer::check;
use crate::jailer_input::copied_programs;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("jailer_weak::{name}"), run);
    vec![
        trial("a_runner_that_lies_is_seen_through", lies),
        trial("a_runner_that_admits_a_weak_layer", admits),
        trial("a_runner_that_attests_nothing", attests_nothing),
        trial("a_runner_that_speaks_out_of_turn", out_of_turn),
        trial("a_runner_that_says_nothing_and_goes", goes),
        trial("the_probe_in_the_runners_place", probe),
        trial("a_script_or_a_stump_in_the_runners_place", no_program),
        trial("a_copy_of_the_real_runner_starts", control),
    ]
}

/// Starts with this file as the runner; the failure, and nothing left.
fn start_with(runner: &[u8]) -> Result<Failure, Failed> {
    let bin = copied_programs()?;
    let path = bin.path().join("casemate-runner");
    // Not written through: another test may be executing a copy of the same file.
    fs::remove_file(&path)?;
    fs::write(&path, runner)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let host = Host::with_programs(bin.path().into())?;
    let spec = host.bare("weak", guest::pvh_elf(guest::power_off))?;
    let failure = host.refused(&spec)?;
    host.spotless()?;
    Ok(failure)
}

/// A static program that says `message` in the runner's place.
fn liar(message: &[u8]) -> Result<Vec<u8>, Failed> {
    let dir = tempfile::tempdir()?;
    let (lie, program) = (dir.path().join("lie"), dir.path().join("program"));
    fs::write(&lie, message)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kvm/payload/false_runner.rs");
    let flags = ["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"];
    let output = Command::new("rustc").args(flags).arg(&program).arg(source).env("LIE", &lie).output()?;
    check(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    Ok(fs::read(program)?)
}

fn finding(ok: bool) -> Finding {
    let text = |t: &str| t.to_owned();
    Finding { layer: text("seccomp"), what: text("filters"), expected: text("3"), seen: text("whatever"), ok }
}

fn said(failure: &Failure) -> String {
    format!("{}: {}", failure.step, failure.error)
}

/// All is well, it says; but it has set no no_new_privs and installed no filter of its own.
fn lies() -> Result<(), Failed> {
    let failure = start_with(&liar(&codec::encode(&FromRunner::Attested(vec![finding(true)]))?)?)?;
    let said = said(&failure);
    check(said.contains("prove the confinement, layer "), &said)?;
    check(said.to_lowercase().contains("no_new_privs") || said.contains("NoNewPrivs"), &said)?;
    check(said.to_lowercase().contains("seccomp"), &said)
}

fn admits() -> Result<(), Failed> {
    let failure = start_with(&liar(&codec::encode(&FromRunner::Attested(vec![finding(false)]))?)?)?;
    check(said(&failure).contains("prove the confinement, layer seccomp"), said(&failure))
}

fn attests_nothing() -> Result<(), Failed> {
    let failure = start_with(&liar(&codec::encode(&FromRunner::Attested(Vec::new()))?)?)?;
    check(said(&failure).contains("attestation"), said(&failure))
}

fn out_of_turn() -> Result<(), Failed> {
    let exited = FromRunner::Exited { cause: ExitCause::PowerOff, detail: None };
    for message in [codec::encode(&exited)?, codec::encode(&FromRunner::Paused)?, vec![0xff; 40], vec![0; 60_000]] {
        let failure = start_with(&liar(&message)?)?;
        check(said(&failure).contains("attestation"), said(&failure))?;
    }
    Ok(())
}

fn goes() -> Result<(), Failed> {
    let failure = start_with(&liar(b"")?)?;
    check(said(&failure).contains("the runner ended"), said(&failure))
}

fn probe() -> Result<(), Failed> {
    let failure = start_with(&fs::read(Host::new()?.bin().join("casemate-probe"))?)?;
    check(said(&failure).contains("the runner ended") || said(&failure).contains("something else"), said(&failure))
}

fn no_program() -> Result<(), Failed> {
    let runner = fs::read(Host::new()?.bin().join("casemate-runner"))?;
    for stump in [&b"#!/bin/sh\nexit 0\n"[..], b"", b"\x7fELF", &runner[..runner.len() / 2]] {
        let failure = start_with(stump)?;
        check(said(&failure).contains("runner"), said(&failure))?;
    }
    Ok(())
}

/// The positive control: the real program, copied the same way, starts.
fn control() -> Result<(), Failed> {
    let bin = copied_programs()?;
    let host = Host::with_programs(bin.path().into())?;
    let mut vm = host.start(&host.bare("real", guest::pvh_elf(guest::power_off))?)?;
    vm.started()?;
    vm.exited()?;
    host.clean()
}
