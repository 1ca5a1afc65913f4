"""The build: every cached step, in order. Callers: `testbed build`, `up`, `run`."""
from . import guestfs, image, kernel, packages
from .common import HOME, locked


def build(with_policy=True, thorough=True):
    """Make what is not there or no longer fits; the key of the disk image."""
    with locked(HOME / "build.lock", "another build is under way, waiting for it"):
        packages.install_host_packages()
        made = [packages.ensure_debs("trixie", True, thorough),
                packages.ensure_debs("bookworm", False, thorough),
                kernel.ensure(image.SUITE, thorough),
                guestfs.ensure_tiny(thorough),
                guestfs.ensure_full(thorough)]
        return image.ensure_disk(made, with_policy, thorough)
