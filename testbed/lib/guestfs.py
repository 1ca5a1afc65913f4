"""Root file systems for L2 guests (what `casemate run` boots inside L1), as tar files.

Callers: build. The tars hold no device nodes and are owned by root.
"""
import shutil

from . import packages
from .common import CACHE, HOME, Stage, hash_file, hash_inputs, remove, run

SUITE = "trixie"
FULL = CACHE / "guest-rootfs.tar"
TINY = CACHE / "guest-rootfs-tiny.tar"
PACKAGES = ["procps", "iproute2"]       # beside what is essential: bash, coreutils, util-linux, ...


def _pack(tree, target):
    fresh = target.with_suffix(".new")
    run(["tar", "-C", tree, "--sort=name", "--numeric-owner", "--owner=0", "--group=0",
         "--exclude=./dev/*", "-cf", fresh, "."], f"packing {target.name}")
    fresh.replace(target)


def ensure_full(thorough):
    key = hash_inputs("3", SUITE, " ".join(PACKAGES), packages.sources(SUITE))
    stage = Stage("guest-rootfs", key, [FULL])

    def make():
        tree = HOME / "guest-rootfs"
        remove(tree)
        run(["mmdebstrap", "--variant=essential", f"--include={','.join(PACKAGES)}",
             "--aptopt=APT::Install-Recommends \"false\"",
             *(f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in ("doc", "man", "locale", "info", "zoneinfo")),
             SUITE, tree, packages.sources_file(SUITE)], "mmdebstrap of the guest's root file system")
        for waste in ("var/cache/apt", "var/lib/apt/lists", "var/log/apt"):
            if (tree / waste).exists():
                shutil.rmtree(tree / waste)
        _pack(tree, FULL)
        remove(tree)
    stage.ensure(make, thorough)
    return stage.made_key()


def ensure_tiny(thorough):
    deb = packages.busybox_deb()
    stage = Stage("guest-rootfs-tiny", hash_inputs("2", hash_file(deb)), [TINY])

    def make():
        tree = HOME / "guest-rootfs-tiny"
        remove(tree)
        packages.unpack(deb, tree / "deb")
        for d in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"):
            (tree / d).mkdir()
        (tree / "tmp").chmod(0o1777)
        shutil.copy2(tree / "deb/usr/bin/busybox", tree / "bin/busybox")
        remove(tree / "deb")
        for applet in run([tree / "bin/busybox", "--list"], "listing busybox's applets").split():
            if applet != "busybox":
                (tree / "bin" / applet).symlink_to("busybox")
        for name in ("sbin", "usr/bin", "usr/sbin"):
            (tree / name).symlink_to("../bin" if "/" in name else "bin")
        (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        (tree / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (tree / "etc/hostname").write_text("casemate\n")
        _pack(tree, TINY)
        remove(tree)
    stage.ensure(make, thorough)
    return stage.made_key()
