"""Commands, files and policy in a living L1, over its ssh connection.

Every command goes through guest/relay.c, which sets the SELinux context and gives the
command pipes of its own context. Callers: cli.
"""
import os
import re
import shlex
import subprocess
import tarfile
import tempfile
from pathlib import Path

from . import image, machine
from .common import Failure, say

RELAY = "/usr/libexec/testbed/relay"
# Where each domain lives on a real host: logged-in users in the full range, services at s0.
# restorecon says so of every file below /tmp and the like, where no label is prescribed.
QUIET = "2>&1 | grep -v '^Warning no default label' >&2 || true"
UNCONFINED = "unconfined_u:unconfined_r:{}:s0-s0:c0.c1023"
SERVICE = "system_u:system_r:{}:s0"
AUDIT_WORDS = ("avc:", "SELINUX_ERR", "type=1400", "type=1401", "type=1326", "seccomp", "landlock",
               "segfault", "general protection")
CHANGING = re.compile(r"^\[ *[\d.]+\]|audit\([\d.:]+\)|\b(pid|ino|ses)=\d+")   # what differs between repeats
CASEMATE_PLACES = ("/usr/bin/casemate*", "/usr/libexec/casemate", "/run/casemate", "/var/lib/casemate")


def context(domain):
    """A full context stays; a bare domain gets the user, role and range it has on a host."""
    if ":" in domain:
        return domain
    return (UNCONFINED if domain == "unconfined_t" else SERVICE).format(domain)


def _ssh(inst, remote, terminal=False, **options):
    if not inst.ready():
        raise Failure(f"L1 {inst.name} is not up: run `testbed up"
                      + ("`" if inst.name == "default" else f" --name {inst.name}`"))
    argv = ["setpriv", "--pdeathsig", "TERM", *machine.ssh_base(inst.state()["port"]),
            "-tt" if terminal else "-T", "root@127.0.0.1", remote]
    return subprocess.Popen(argv, cwd=inst.dir, **options)


def _wait(process, seconds=None):
    while True:
        try:
            return process.wait(seconds)
        except KeyboardInterrupt:
            process.terminate()


def execute(inst, argv, domain="unconfined_t", timeout=0, stdin=False, terminal=False):
    """Run one command; its exit status. 255 = the connection was lost."""
    parts = [RELAY]
    if domain != "unconfined_t":
        parts += ["-c", context(domain)]
    if timeout:
        parts += ["-t", str(timeout)]
    if terminal:
        parts.append("-T")
    elif stdin:
        parts.append("-i")
    remote = "exec " + shlex.join([*parts, "--", *argv])
    with inst.in_use():
        source = None if stdin or terminal else subprocess.DEVNULL
        process = _ssh(inst, remote, terminal, stdin=source)
        # The relay ends the command; this limit only covers a hung L1.
        try:
            return _wait(process, timeout + 60 if timeout else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Failure(f"L1 {inst.name} did not answer within {timeout + 60} s") from None


def capture(inst, script):
    """Output of a shell script in L1; its failure is ours."""
    with inst.in_use():
        process = _ssh(inst, "exec sh -c " + shlex.quote(script), stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE)
        out, _ = process.communicate()
    if process.returncode != 0:
        raise Failure(f"in L1 {inst.name}: ended with {process.returncode}: {script}")
    return out


def _owned_by_root(info):
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def _send(inst, script, add):
    """Run a script in L1 with a tar stream, filled by `add(tar)`, as its input."""
    with inst.in_use():
        process = _ssh(inst, "exec sh -ec " + shlex.quote(script), stdin=subprocess.PIPE)
        try:
            with tarfile.open(fileobj=process.stdin, mode="w|", bufsize=1 << 18,
                              format=tarfile.GNU_FORMAT) as tar:
                add(tar)
            process.stdin.close()
        except BrokenPipeError:
            pass                    # the status below tells
        if _wait(process) != 0:
            raise Failure(f"sending files to L1 {inst.name} failed with {process.returncode}")


def push(inst, sources, target):
    """Files and directories into L1, modes kept, owner root, labelled by L1's policy.

    As cp does: into TARGET if it is a directory (or ends in / or there are several
    sources), else TARGET is the new name.
    """
    for source in sources:
        if not os.path.lexists(source):
            raise Failure(f"{source} does not exist")
    names = [Path(os.path.abspath(s)).name for s in sources]
    many = len(sources) > 1 or target.endswith("/")
    restore = " ".join(f'"$d"/{shlex.quote(n)}' for n in names)
    into = f'mkdir -p "$d"; tar -C "$d" --no-same-owner -xpf - $W; restorecon -RF {restore} {QUIET}'
    rename = (f't="$d.testbed-push.$$"; mkdir -p "$t"; tar -C "$t" --no-same-owner -xpf - $W; '
              f'mv -fT "$t"/{shlex.quote(names[0])} "$d"; rmdir "$t"; restorecon -RF "$d" {QUIET}')
    script = f"W=--warning=no-timestamp; d={shlex.quote(target)}\n"
    script += into if many else f'if [ -d "$d" ]; then {into}; else {rename}; fi'

    def add(tar):
        for source, name in zip(sources, names):
            tar.add(os.path.realpath(source) if os.path.isfile(source) else source, name, filter=_owned_by_root)
    _send(inst, script, add)


def pull(inst, source, target):
    """A file or directory out of L1, named TARGET (or into it, if it is a directory)."""
    source = source.rstrip("/")
    parent, name = os.path.split(source)
    if not name or name in (".", ".."):
        raise Failure("pull wants the path of a file or directory below /")
    destination = Path(target)
    if destination.is_dir():
        destination /= name
    script = f"exec tar -C {shlex.quote(parent or '.')} -cf - -- {shlex.quote(name)}"
    # GNU tar refuses names that lead out of the temporary directory.
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".testbed-pull.") as fresh, inst.in_use():
        process = _ssh(inst, script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        unpack = subprocess.run(["tar", "-C", fresh, "-xpf", "-"], stdin=process.stdout,
                                stderr=subprocess.PIPE, check=False)
        process.stdout.close()
        status = _wait(process)
        if status != 0 or unpack.returncode != 0:
            detail = "" if status else unpack.stderr.decode(errors="replace")
            raise Failure(f"reading {source} from L1 {inst.name} failed with {status}{detail}")
        if destination.is_dir() and not destination.is_symlink():
            raise Failure(f"{destination} is a directory already")
        (Path(fresh) / name).replace(destination)


def choose_modules(given):
    """The CIL files and the cache stage for them: trials must not displace the image's own."""
    if given:
        return [Path(m) for m in given], "policy.trial"
    found = image.policy_modules()
    if not found:
        raise Failure(f"no *.cil in {image.POLICIES}")
    return found, "policy"


def policy(inst, live, modules):
    """Install CIL modules (policies/*.cil) in a running L1 and label Casemate's places.

    Compiled on this machine (seconds) and loaded there; `live` runs semodule in L1
    itself (minutes under emulation), as an administrator would.
    """
    modules, stage = choose_modules(modules)
    names = ", ".join(m.name for m in modules)
    labels = f"for p in {' '.join(CASEMATE_PLACES)}; do [ -e \"$p\" ] && restorecon -RF \"$p\"; done; true"
    if live:
        say(f"semodule in L1: {names}")
        staged = "/tmp/testbed-policy"
        capture(inst, f"rm -rf {staged}; mkdir {staged}")
        push(inst, [str(m) for m in modules], staged + "/")
        capture(inst, f"cd {staged} && semodule -X 400 -i *.cil && cd / && rm -rf {staged}; {labels}")
        return
    compiled, _ = image.compile_policy(modules, name=stage)
    say(f"loading into L1: {names}")
    # Labelled before it takes the old one's place: sshd and restorecon read these files
    # in their own domains, and would be locked out by a wrong type.
    script = ('t=/var/lib/testbed/policy.new; rm -rf $t; mkdir -p $t; tar -C $t -xpf -\n'
              'setfiles -F -r $t /etc/selinux/default/contexts/files/file_contexts $t\n'
              'rm -rf /var/lib/selinux.old; mv /var/lib/selinux /var/lib/selinux.old\n'
              'mv $t/var/lib/selinux /var/lib/selinux\n'
              'mv /etc/selinux/default $t/old; mv $t/etc/selinux/default /etc/selinux/default\n'
              'load_policy; rm -rf $t /var/lib/selinux.old; ' + labels)

    def add(tar):
        for part in ("var/lib/selinux", "etc/selinux/default"):
            tar.add(compiled / part, part, filter=_owned_by_root)
    _send(inst, script, add)


def avc(inst, everything):
    """Denials and kills since L1 was ready, each kind once with its count; or all since boot, raw."""
    text = capture(inst, "dmesg").decode(errors="replace").splitlines()
    if not everything:
        starts = [i for i, line in enumerate(text) if machine.READY in line]
        text = text[starts[-1] + 1:] if starts else text
    lines = [x for x in text if any(w in x for w in AUDIT_WORDS) and "lsm=selinux res=1" not in x]
    if everything:
        print("\n".join(lines))
        return
    kinds = {}
    for line in lines:
        # Noise of the equipment itself: semodule's needless relabels, sshd's login records.
        if re.search(r"scontext=\S+:(semanage_t|sshd_t):", line):
            continue
        kinds.setdefault(CHANGING.sub("", line), []).append(line)
    for same in kinds.values():
        print(same[0] + (f"  (x{len(same)})" if len(same) > 1 else ""))
