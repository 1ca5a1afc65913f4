"""L1's kernel: Debian's cloud kernel as an uncompressed ELF (it starts faster under
emulation than a packed bzImage), and our own small initramfs.

Callers: build.
"""
import lzma
import shutil
import subprocess

from . import packages
from .common import GUEST, HOME, Failure, Stage, hash_file, hash_inputs, remove, run

BOOT = HOME / "boot"
VMLINUX = BOOT / "vmlinux"
INITRAMFS = BOOT / "initramfs.cpio"
MODULES = BOOT / "modules"          # usr/lib/modules/VERSION of the package

# The disk's driver; the rest (virtio, virtio_pci, ext4) is built in.
IN_INITRAMFS = ["virtio_blk"]
# Stored uncompressed in L1: unpacking xz costs seconds under emulation.
UNPACKED = ["kvm", "kvm_amd", "ccp", "irqbypass", "virtio_net", "net_failover", "failover", "tun",
            "vhost", "vhost_net", "vhost_vsock", "vhost_iotlb", "tap", "vsock", "overlay", "erofs",
            "loop", "virtio_rng", "rng_core", "psmouse", "vmw_vsock_virtio_transport_common"]


def _decompress(data):
    """The ELF inside a bzImage: try each place that looks like a packed stream."""
    packers = [(b"\x28\xb5\x2f\xfd", ["zstd", "-dcq"]), (b"\xfd7zXZ\x00", ["xz", "-dcq"]),
               (b"\x02\x21\x4c\x18", ["lz4", "-dcq"]), (b"\x1f\x8b\x08", ["gzip", "-dcq"])]
    for magic, tool in packers:
        at = data.find(magic)
        while at >= 0:
            # Trailing bytes after the stream make the tool complain; the output counts.
            done = subprocess.run(tool, input=data[at:], capture_output=True, check=False)
            if done.stdout.startswith(b"\x7fELF"):
                return done.stdout
            at = data.find(magic, at + 1)
    raise Failure("no packed ELF kernel found in the vmlinuz of the kernel package")


def _read_module(path):
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _find_modules(tree):
    return {p.name.split(".ko")[0].replace("-", "_"): p for p in tree.rglob("*.ko*")}


def _write_initramfs(modules, busybox):
    top = BOOT / "initramfs"
    remove(top)
    for d in ("bin", "modules", "proc", "sys", "dev", "root"):
        (top / d).mkdir(parents=True)
    shutil.copy2(busybox, top / "bin/busybox")
    for tool in ("sh", "mount", "insmod", "sleep", "switch_root", "poweroff", "echo"):
        (top / "bin" / tool).symlink_to("busybox")
    shutil.copy2(GUEST / "initramfs-init", top / "init")
    (top / "init").chmod(0o755)
    for name in IN_INITRAMFS:
        (top / "modules" / f"{name}.ko").write_bytes(_read_module(modules[name]))
    (top / "modules/order").write_text("".join(f"{n}.ko\n" for n in IN_INITRAMFS))
    run(["sh", "-c", f"find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible > {INITRAMFS}"],
        "packing the initramfs", cwd=top)
    remove(top)


def _unpack_modules(tree, version):
    for name, path in _find_modules(tree / "usr/lib/modules" / version).items():
        if name in UNPACKED and path.suffix == ".xz":
            path.with_suffix("").write_bytes(_read_module(path))
            path.unlink()
    # depmod wants lib/modules below its base.
    if not (tree / "lib").exists():
        (tree / "lib").symlink_to("usr/lib")
    run(["depmod", "-b", tree, version], "depmod")


def version():
    return next((MODULES / "usr/lib/modules").iterdir()).name


def ensure(suite, thorough):
    deb, busybox = packages.kernel_deb(suite), packages.busybox_deb()
    key = hash_inputs("4", hash_file(deb), hash_file(busybox), GUEST / "initramfs-init",
                      " ".join(IN_INITRAMFS + UNPACKED))
    stage = Stage("boot", key, [VMLINUX, INITRAMFS, MODULES])

    def make():
        remove(BOOT)
        packages.unpack(deb, MODULES)
        packages.unpack(busybox, BOOT / "busybox")
        vmlinuz = packages.only(MODULES / "boot", "vmlinuz-*")
        VMLINUX.write_bytes(_decompress(vmlinuz.read_bytes()))
        tree = MODULES / "usr/lib/modules"
        _write_initramfs(_find_modules(tree), BOOT / "busybox/usr/bin/busybox")
        _unpack_modules(MODULES, version())
    stage.ensure(make, thorough)
    return stage.made_key()
