"""Debian packages: the host's tools, and .deb files fetched with a private apt state
(the machine's own apt sources stay as they are).

Callers: build.
"""
import os
import pathlib

from .common import CACHE, HOME, ROOM, Failure, Stage, remove, run

KERNELS = CACHE / "kernels"
DEBS = HOME / "debs"
MIRROR = os.environ.get("CASEMATE_DEBIAN_MIRROR", "http://deb.debian.org/debian")
SECURITY = os.environ.get("CASEMATE_DEBIAN_SECURITY", "http://deb.debian.org/debian-security")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def install_host_packages():
    run([ROOM / "install-packages"], "installing the host's packages")


def sources(suite):
    """deb822 text of one suite with its updates and security fixes."""
    def entry(uri, suites):
        return f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n"
    return entry(MIRROR, f"{suite} {suite}-updates") + "\n" + entry(SECURITY, f"{suite}-security")


def sources_file(suite):
    path = HOME / "apt" / suite / "etc" / f"{suite}.sources"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(sources(suite))
    return path


def _apt_options(suite):
    base = HOME / "apt" / suite
    for d in ("lists/partial", "cache/archives/partial"):
        (base / d).mkdir(parents=True, exist_ok=True)
    pairs = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": sources_file(suite).parent,
        "Dir::State::lists": base / "lists",
        "Dir::Cache": base / "cache",
        "APT::Sandbox::User": "root",
        "APT::Get::AllowUnauthenticated": "false",
    }
    return [x for k, v in pairs.items() for x in ("-o", f"{k}={v}")]


def _kernel_package(suite):
    """The versioned package behind linux-image-cloud-amd64."""
    text = run(["apt-cache", *_apt_options(suite), "depends", "linux-image-cloud-amd64"],
               f"looking up {suite}'s cloud kernel")
    for line in text.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise Failure(f"{suite} names no cloud kernel for linux-image-cloud-amd64")


def _download(suite, wanted, target):
    target.mkdir(parents=True, exist_ok=True)
    run(["apt-get", *_apt_options(suite), "download", *wanted], f"downloading from {suite}", cwd=target)


def _fetch(suite, with_busybox):
    run(["apt-get", *_apt_options(suite), "update", "-q"], f"apt-get update for {suite}")
    remove(KERNELS / suite)
    _download(suite, [_kernel_package(suite)], KERNELS / suite)
    link = kernel_deb(suite)
    link.unlink(missing_ok=True)
    link.symlink_to(only(KERNELS / suite, "linux-image-*-cloud-amd64*.deb").relative_to(KERNELS))
    if with_busybox:
        for old in DEBS.glob("busybox-static*.deb"):
            old.unlink()
        _download(suite, ["busybox-static"], DEBS)
        only(DEBS, "busybox-static_*.deb").rename(busybox_deb())


def only(directory, pattern):
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise Failure(f"expected one {pattern} in {directory}, found {len(found)}")
    return found[0]


def kernel_deb(suite):
    """A steady name for the package file, which keeps Debian's own name behind it."""
    return KERNELS / f"{suite}.deb"


def busybox_deb():
    return DEBS / "busybox-static.deb"


def ensure_debs(suite, with_busybox, thorough):
    outputs = [kernel_deb(suite)] + ([busybox_deb()] if with_busybox else [])
    stage = Stage(f"debs-{suite}", f"2 {MIRROR} {suite} {with_busybox}", outputs)

    stage.ensure(lambda: _fetch(suite, with_busybox), thorough)
    return stage.made_key()


def unpack(deb: pathlib.Path, target: pathlib.Path):
    target.mkdir(parents=True, exist_ok=True)
    run(["dpkg-deb", "-x", deb, target], f"unpacking {deb.name}")
