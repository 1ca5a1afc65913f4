"""Commands, files and policy in a living L1, over its ssh connection.

Every command goes through guest/relay.c, which sets the SELinux context and gives the
command pipes of its own context. Callers: cli.
"""
import io
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

from . import image, machine
from .common import Failure, hash_inputs, say

RELAY = "/usr/libexec/testbed/relay"
# Where each domain lives on a real host: logged-in users in the full range, services at s0.
UNCONFINED = "unconfined_u:unconfined_r:{}:s0-s0:c0.c1023"
SERVICE = "system_u:system_r:{}:s0"
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
    argv = [*machine.ssh_base(inst.state()["port"]), "-tt" if terminal else "-T", "root@127.0.0.1", remote]
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
    into = f'mkdir -p "$d"; tar -C "$d" --no-same-owner -xpf -; restorecon -RF {restore}'
    rename = (f't="$d.testbed-push.$$"; mkdir -p "$t"; tar -C "$t" --no-same-owner -xpf -; '
              f'mv -fT "$t"/{shlex.quote(names[0])} "$d"; rmdir "$t"; restorecon -RF "$d"')
    script = f"d={shlex.quote(target)}\n"
    script += into if many else f'if [ -d "$d" ]; then {into}; else {rename}; fi'

    def add(tar):
        for source, name in zip(sources, names):
            tar.add(os.path.realpath(source) if os.path.isfile(source) else source, name, filter=_owned_by_root)
    _send(inst, script, add)


def pull(inst, source, target):
    """A file or directory out of L1, named TARGET (or into it, if it is a directory)."""
    source = source.rstrip("/") or "/"
    parent, name = os.path.split(source)
    script = f"exec tar -C {shlex.quote(parent or '.')} -cf - -- {shlex.quote(name or '.')}"
    destination = Path(target)
    with inst.in_use():
        process = _ssh(inst, script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                into = destination.is_dir()
                for member in tar:
                    if not into:
                        rest = member.name[len(name):].lstrip("/")
                        member.name = os.path.join(destination.name, rest) if rest else destination.name
                    tar.extract(member, destination if into else destination.parent, filter="tar",
                                set_attrs=True)
        except tarfile.ReadError as e:
            raise Failure(f"reading {source} from L1 {inst.name} failed: {e}") from e
        finally:
            process.stdout.close()
            status = _wait(process)
        if status != 0:
            raise Failure(f"reading {source} from L1 {inst.name} failed with {status}")


def policy(inst, live):
    """Install policies/*.cil in a running L1 and label Casemate's places.

    Compiled on this machine (seconds) and loaded there; `live` runs semodule in L1
    itself (minutes under emulation), as an administrator would.
    """
    modules = image.policy_modules()
    if not modules:
        raise Failure(f"no *.cil in {image.POLICIES}")
    names = ", ".join(m.name for m in modules)
    labels = f"for p in {' '.join(CASEMATE_PLACES)}; do [ -e \"$p\" ] && restorecon -RF \"$p\"; done; true"
    if live:
        say(f"semodule in L1: {names}")
        staged = "/tmp/testbed-policy"
        capture(inst, f"rm -rf {staged}; mkdir {staged}")
        push(inst, [str(m) for m in modules], staged + "/")
        capture(inst, f"cd {staged} && semodule -X 400 -i *.cil && cd / && rm -rf {staged}; {labels}")
        return
    compiled, key = image.compile_policy(modules)
    say(f"loading into L1: {names}")
    # The new store replaces the old in one rename each; then the kernel gets the policy.
    script = ('t=/var/lib/testbed/policy.new; rm -rf $t; mkdir -p $t; tar -C $t -xpf -\n'
              'rm -rf /var/lib/selinux /etc/selinux/default\n'
              'mv $t/var/lib/selinux /var/lib/selinux; mv $t/etc/selinux/default /etc/selinux/default\n'
              'load_policy; restorecon -RF /var/lib/selinux /etc/selinux/default\n' + labels)

    def add(tar):
        for part in ("var/lib/selinux", "etc/selinux/default"):
            tar.add(compiled / part, part, filter=_owned_by_root)
    _send(inst, script, add)
    return key


def avc(inst, everything):
    """Denials and kills since L1 was ready (or since boot), from the kernel log."""
    text = capture(inst, "dmesg").decode(errors="replace").splitlines()
    if not everything:
        starts = [i for i, line in enumerate(text) if machine.READY in line]
        text = text[starts[-1] + 1:] if starts else text
    wanted = ("avc:", "SELINUX_ERR", "type=1400", "type=1401", "type=1326", "type=1423", "type=1424",
              "seccomp", "landlock", "segfault", "general protection")
    for line in text:
        if any(w in line for w in wanted) and "lsm=selinux res=1" not in line:
            print(line)
