"""L1's disk: a Debian tree, the SELinux module under test compiled into it, labelled
offline, packed as ext4.

Nothing here needs SELinux on this machine: security.selinux xattrs are written by
setfiles in a chroot and kept by mke2fs.
Callers: build, and `testbed policy` (compile_policy).
"""
import shutil
import tempfile
from pathlib import Path

from . import kernel, packages
from .common import CACHE, GUEST, HOME, POLICIES, Failure, Stage, hash_inputs, remove, run

SUITE = "trixie"
PACKAGES = ["selinux-policy-default", "policycoreutils", "semodule-utils", "checkpolicy", "secilc",
            "kmod", "iproute2", "procps", "util-linux", "openssh-server", "xz-utils", "strace",
            "erofs-utils", "e2fsprogs", "libselinux1", "libpcre2-8-0"]
TREE = HOME / "tree"                # pristine mmdebstrap output
WORK = HOME / "tree.work"           # the tree that became the image
DISK = HOME / "l1.ext4"
SSH = HOME / "ssh"
DISK_SIZE = "4G"
SEPOLICY_VERSION = 33               # the newest that linux 6.12 reads
STORE = Path("var/lib/selinux")     # module store and compiled policy: the two
CONFIG = Path("etc/selinux")        # directories that semodule writes
VARIANT = ""                        # which L1: the plain one, or a file of variants/


def use_variant(name):
    """Another L1 beside the plain one: the packages in testbed/variants/NAME join it, and its tree, policy and disk
    are its own, so that the plain one stays small."""
    global VARIANT, TREE, WORK, DISK
    if not name:
        return
    if not (GUEST.parent / "variants" / name).is_file():
        raise Failure(f"there is no variant {name!r} in {GUEST.parent}/variants")
    VARIANT = f"-{name}"
    TREE, WORK, DISK = HOME / f"tree{VARIANT}", HOME / f"tree{VARIANT}.work", HOME / f"l1{VARIANT}.ext4"


def extra_packages():
    """Hook: names in testbed/extra-packages (one per line) join every L1, those of a variant's file join that one."""
    hooks = [GUEST.parent / "extra-packages"]
    if VARIANT:
        hooks.append(GUEST.parent / "variants" / VARIANT[1:])
    lines = [line for hook in hooks if hook.exists() for line in hook.read_text().splitlines()]
    return [w for line in lines for w in line.split("#")[0].split()]


def ensure_tree(thorough):
    wanted = sorted(set(PACKAGES + extra_packages()))
    key = hash_inputs("5", SUITE, " ".join(wanted), packages.sources(SUITE))
    stage = Stage(f"tree{VARIANT}", key, [TREE])

    def make():
        remove(TREE)
        run(["mmdebstrap", "--variant=minbase", f"--include={','.join(wanted)}",
             "--aptopt=APT::Install-Recommends \"false\"",
             "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
             "--dpkgopt=path-exclude=/usr/share/locale/*",
             SUITE, TREE, packages.sources_file(SUITE)], "mmdebstrap of the L1 tree")
        run(["sh", "-c", f"grep -q ^policy-version {TREE}/etc/selinux/semanage.conf || "
             f"echo 'policy-version = {SEPOLICY_VERSION}' >> {TREE}/etc/selinux/semanage.conf"],
            "setting the policy version")
        run(["sed", "-i", "s/^SELINUX=.*/SELINUX=enforcing/", TREE / "etc/selinux/config"],
            "setting SELinux enforcing")
        compiled = HOME / f"policy{VARIANT}.base"
        remove(compiled)
        _semodule(compiled, [GUEST / "testbed.cil"])
        for part in (STORE, CONFIG):
            remove(TREE / part)
            shutil.move(compiled / part, TREE / part)
        remove(compiled)
        # The package's own build is of a newer version and would be loaded first.
        for built in (TREE / CONFIG / "default/policy").glob("policy.*"):
            if built.suffix != f".{SEPOLICY_VERSION}":
                built.unlink()
    stage.ensure(make, thorough)
    return key


def policy_modules():
    return sorted(POLICIES.glob("*.cil")) if POLICIES.is_dir() else []


def _semodule(target, modules):
    """semodule -n -i in a private chroot whose two SELinux directories are copies in `target`."""
    target.mkdir(parents=True)
    for part in (STORE, CONFIG):
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        run(["cp", "-a", TREE / part, target / part], "copying the policy store")
    names = [m.name for m in modules]
    with tempfile.TemporaryDirectory(dir=HOME, prefix="cil.") as staged:
        for module in modules:
            shutil.copy(module, staged)
        script = (
            'set -e; mount --bind "$1" "$1"; mount -t tmpfs tmpfs "$1/mnt"; mkdir "$1/mnt/cil"\n'
            'mount --bind "$3" "$1/mnt/cil"; mount --bind "$2/var/lib/selinux" "$1/var/lib/selinux"\n'
            'mount --bind "$2/etc/selinux" "$1/etc/selinux"; mount -t proc proc "$1/proc"\n'
            'root=$1; shift 3; cd "$root/mnt/cil"; exec chroot "$root" sh -c '
            '\'cd /mnt/cil && exec semodule -n -X 400 -i "$@"\' semodule "$@"\n')
        run(["unshare", "-m", "sh", "-c", script, "sh", TREE, target, staged, *names],
            "compiling the CIL modules (`up --no-policy` starts without them)")


def compile_policy(modules, thorough=False, name="policy"):
    """The tree's policy with `modules` installed: a directory with STORE and CONFIG in it."""
    tree_key = ensure_tree(thorough)
    name += VARIANT
    out = HOME / name
    key = hash_inputs("2", tree_key, *[m.name for m in modules], *modules)
    stage = Stage(name, key, [out])

    def make():
        remove(out)
        if modules:
            _semodule(out, modules)
            return
        for part in (STORE, CONFIG):
            (out / part).parent.mkdir(parents=True, exist_ok=True)
            run(["cp", "-a", TREE / part, out / part], "copying the policy store")
    stage.ensure(make, thorough)
    return out, key


def _ensure_keys():
    for name in ("id_ed25519", "host_ed25519"):
        if not (SSH / name).exists():
            SSH.mkdir(mode=0o700, parents=True, exist_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "casemate-testbed", "-f", SSH / name],
                "making an ssh key")
    host = (SSH / "host_ed25519.pub").read_text()
    (SSH / "known_hosts").write_text(f"casemate-l1 {host}")
    return hash_inputs(SSH / "id_ed25519.pub", SSH / "host_ed25519.pub")


def _install_guest_parts():
    tools = WORK / "usr/libexec/testbed"
    tools.mkdir(parents=True)
    for source in GUEST.glob("*.c"):
        run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", tools / source.stem, source],
            f"compiling {source.name}")
    shutil.copy(GUEST / "rc", tools / "rc")
    (tools / "rc").chmod(0o755)
    shutil.copy(GUEST / "sshd_config", WORK / "etc/ssh/sshd_config")
    for old in (WORK / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    for suffix, mode in (("", 0o600), (".pub", 0o644)):
        target = WORK / f"etc/ssh/ssh_host_ed25519_key{suffix}"
        shutil.copy(SSH / f"host_ed25519{suffix}", target)
        target.chmod(mode)
    dot_ssh = WORK / "root/.ssh"
    dot_ssh.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(SSH / "id_ed25519.pub", dot_ssh / "authorized_keys")
    (dot_ssh / "authorized_keys").chmod(0o600)
    run(["chroot", WORK, "usermod", "-s", "/bin/sh", "root"], "setting root's shell")
    (WORK / "etc/hostname").write_text("casemate-l1\n")
    shutil.copytree(kernel.MODULES / "usr/lib/modules", WORK / "usr/lib/modules", dirs_exist_ok=True)
    for place in ("usr/libexec/casemate", "var/lib/casemate", "var/lib/testbed"):
        (WORK / place).mkdir(parents=True, exist_ok=True)


def _label_and_pack():
    script = ('set -e; mount --bind "$1" "$1"; mount -t proc proc "$1/proc"; cd "$1"\n'
              'exec chroot "$1" /sbin/setfiles -F -m '
              '/etc/selinux/default/contexts/files/file_contexts /\n')
    run(["unshare", "-m", "sh", "-c", script, "sh", WORK], "labelling L1's tree")
    fresh = DISK.with_suffix(".new")
    remove(fresh)
    run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0", "-L", "casemate-l1",
         "-E", "lazy_itable_init=1", "-d", WORK, fresh, DISK_SIZE], "packing L1's disk")
    fresh.replace(DISK)


def ensure_disk(input_keys, with_policy, thorough):
    """`input_keys`: of the stages that made the kernel, its modules and the guests' files."""
    keys = _ensure_keys()
    modules = policy_modules() if with_policy else []
    policy, policy_key = compile_policy(modules, thorough)
    key = hash_inputs("6", policy_key, *input_keys, keys, GUEST, DISK_SIZE)
    stage = Stage(f"disk{VARIANT}", key, [DISK])

    def make():
        remove(WORK)
        run(["cp", "-a", TREE, WORK], "copying L1's tree")
        for part in (STORE, CONFIG):
            remove(WORK / part)
            run(["cp", "-a", policy / part, WORK / part], "copying the compiled policy")
        _install_guest_parts()
        for f in (packages.kernel_deb("trixie"), packages.kernel_deb("bookworm"),
                  CACHE / "guest-rootfs.tar", CACHE / "guest-rootfs-tiny.tar"):
            if not f.exists():
                raise Failure(f"{f} is missing: run `testbed build`")
            shutil.copy(f, WORK / "var/lib/testbed" / f.name)
        _label_and_pack()
        remove(WORK)
    stage.ensure(make, thorough)
    return key
