"""Base policies to compile against, and the compiler.

Debian trixie's policy and its tools are unpacked once into .cache/policy/tree; other base policies are directories
of CIL files (policies/fedora-like, or one that the caller names).
"""
import bz2
import os
import shutil
import subprocess
from pathlib import Path

ROOM = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("CASEMATE_CACHE") or ROOM.parent / ".cache") / "policy"
TREE = HOME / "tree"
DEBIAN = TREE / "cil"
FEDORA_LIKE = ROOM / "fedora-like"
# What the package leaves disabled on a host.
DISABLED = set("aisexec amtu bugzilla cobbler condor cyphesis git ksmtuned likewise livecd nessus numad oddjob openca "
               "rlogin rshd soundserver telnet publicfile thunderbird updfstab usernetctl".split())
PACKAGES = ("libc6,libsepol2,libselinux1,libsemanage2,policycoreutils,secilc,semodule-utils,selinux-policy-default,"
            "base-files,dash,coreutils")


class Skip(Exception):
    """This machine cannot do it; the reason."""


class Broken(Exception):
    """The policy is not as it must be."""


def module_files(without=()):
    return sorted(f for f in ROOM.glob("*.cil") if f.name not in without)


def ready():
    """Unpacks trixie's policy tools and policy, once (about 25 s, root)."""
    if (HOME / "ready").exists():
        return
    if os.geteuid() != 0:
        raise Skip(f"not root, and {TREE} is not there yet")
    if not shutil.which("mmdebstrap"):
        raise Skip("mmdebstrap is not installed (testbed/install-packages)")
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    got = subprocess.run(["mmdebstrap", "--quiet", "--variant=extract", f"--include={PACKAGES}", "trixie", TREE,
                          "http://deb.debian.org/debian"], capture_output=True, text=True, check=False)
    if got.returncode:
        raise Skip(f"Debian's trixie could not be fetched: {got.stderr.strip()[-300:]}")
    (TREE / "etc/selinux/config").write_text("SELINUX=enforcing\nSELINUXTYPE=default\n")
    share = "/usr/share/selinux/default"
    names = [m for m in (TREE / share[1:] / ".modules").read_text().split() if m not in DISABLED]
    install = [x for m in names for x in ("-i", f"{share}/{m}.pp.bz2")]
    # one transaction for all modules
    _run(["chroot", TREE, "semodule", "-X", "100", "-N", "-s", "default", *install], "installing Debian's modules")
    DEBIAN.mkdir()
    for module in (TREE / "var/lib/selinux/default/active/modules/100").iterdir():
        raw = (module / "cil").read_bytes()
        (DEBIAN / f"{module.name}.cil").write_bytes(bz2.decompress(raw) if raw[:3] == b"BZh" else raw)
    (HOME / "ready").touch()


def compile_policy(base, module, out, neverallow=True, contexts=None):
    """secilc of trixie (3.8) over the CIL files of `base` (a directory) and `module` (files), into `out`.

    Raises Broken with secilc's words: an error, or a neverallow rule that does not hold.
    """
    stage = TREE / f"casemate.{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "base").mkdir(parents=True)
    (stage / "module").mkdir()
    try:
        base = Path(base).resolve()
        if base != DEBIAN.resolve():
            for f in Path(base).glob("*.cil"):
                shutil.copy(f, stage / "base")
        if base == FEDORA_LIKE.resolve():
            (stage / "base/levels.cil").write_text(_levels())
        for f in module:
            shutil.copy(f, stage / "module")
        place = f"/{stage.name}"
        first = "/cil" if base == DEBIAN.resolve() else f"{place}/base"
        flags = "" if neverallow else "-N"
        script = f"exec secilc {flags} -m -M true -c 33 -o {place}/policy -f {place}/fc {first}/*.cil {place}/module/*.cil"
        got = subprocess.run(["chroot", TREE, "/bin/sh", "-c", script], capture_output=True, text=True, check=False)
        if got.returncode:
            raise Broken(got.stderr.strip() or got.stdout.strip())
        shutil.move(stage / "policy", out)
        if contexts:
            _run(["chroot", TREE, "/sbin/setfiles", "-c", f"{place}/policy2", f"{place}/fc"], "checking file contexts",
                 lambda: shutil.copy(out, stage / "policy2"))
            shutil.move(stage / "fc", contexts)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _levels(categories=1024):
    names = [f"c{n}" for n in range(categories)]
    declared = "\n".join(f"(category {c})" for c in names)
    return (f"{declared}\n(categoryorder ({' '.join(names)}))\n(sensitivity s0)\n(sensitivityorder (s0))\n"
            f"(sensitivitycategory s0 (range c0 c{categories - 1}))\n")


def _run(argv, what, before=None):
    if before:
        before()
    got = subprocess.run(argv, capture_output=True, text=True, check=False)
    if got.returncode:
        raise Broken(f"{what}: {got.stderr.strip()[-2000:]}")
