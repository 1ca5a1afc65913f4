"""Command line of the testbed. Each verb is one function."""
import argparse
import os
import sys

from . import build, hostprobe, image, machine, remote, selftest
from .common import CACHE, HOME, Failure, locked, say


def _options(args):
    parent = None
    if args.parent:
        start = machine.process_start(args.parent)
        if start is None:
            raise Failure(f"process {args.parent} does not exist, so L1 cannot live as long as it")
        parent = [args.parent, start]
    return {"cpus": args.cpus, "memory": args.memory, "idle": args.idle, "lifetime": args.lifetime,
            "parent": parent, "net": args.net, "append": args.append}


def _start(inst, args):
    if not inst.alive():
        build.build(with_policy=not args.no_policy, thorough=False)
    return machine.up(inst, _options(args))


def verb_build(args):
    build.build(with_policy=not args.no_policy)
    say(f"all is there: {image.DISK}, {CACHE}/guest-rootfs.tar, {CACHE}/guest-rootfs-tiny.tar, {CACHE}/kernels")
    return 0


def verb_up(args):
    inst = machine.Instance(args.name)
    state = _start(inst, args)
    say(f"L1 {inst.name} is up (ready {state['ready_after']} s after its start)")
    return 0


def _command(args):
    argv = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not argv:
        raise Failure("no command given: testbed exec -- CMD [ARG]...")
    return argv


def verb_exec(args):
    return remote.execute(machine.Instance(args.name), _command(args), args.domain, args.timeout,
                          args.stdin, args.terminal)


def verb_shell(args):
    return remote.execute(machine.Instance(args.name), ["bash", "-l"], args.domain, terminal=True)


def verb_run(args):
    inst = machine.Instance(f"run-{os.getpid()}")
    args.parent = args.parent or os.getpid()
    argv = _command(args)
    try:
        _start(inst, args)
        for spec in args.push:
            source, _, target = spec.partition(":")
            remote.push(inst, [source], target)
        return remote.execute(inst, argv, args.domain, args.timeout, args.stdin)
    finally:
        machine.down(inst)
        machine.forget(inst)


def verb_push(args):
    remote.push(machine.Instance(args.name), args.source, args.target)
    return 0


def verb_pull(args):
    remote.pull(machine.Instance(args.name), args.source, args.target)
    return 0


def verb_policy(args):
    if args.check:
        with locked(HOME / "build.lock", "a build is under way, waiting for it"):
            modules, stage = remote.choose_modules(args.module)
            out, _ = image.compile_policy(modules, name=stage)
        say(f"compiles: {out}/etc/selinux/default/policy/policy.{image.SEPOLICY_VERSION}")
        return 0
    with locked(HOME / "build.lock", "a build is under way, waiting for it"):
        remote.policy(machine.Instance(args.name), args.live, args.module)
    return 0


def verb_avc(args):
    remote.avc(machine.Instance(args.name), args.all)
    return 0


def verb_down(args):
    for inst in machine.instances() if args.all else [machine.Instance(args.name)]:
        machine.down(inst)
    return 0


def verb_status(args):
    found = [machine.report(i) for i in machine.instances()]
    if not found:
        say("no instance was ever started")
    return 0 if any(found) else 1


def verb_probe(args):
    return remote.execute(machine.Instance(args.name), ["/usr/libexec/testbed/kvm-probe"], args.domain)


def verb_selftest(_args):
    return selftest.run()


def verb_probe_host(_args):
    return hostprobe.report()


def _add_machine(p):
    p.add_argument("--cpus", type=int, default=2)
    p.add_argument("--memory", type=int, default=3072, metavar="MIB")
    p.add_argument("--idle", type=float, default=machine.DEFAULT_IDLE, metavar="MIN",
                   help="power off after so many minutes without use (default %(default)s)")
    p.add_argument("--lifetime", type=float, default=720, metavar="MIN", help="power off in any case then")
    p.add_argument("--parent", type=int, metavar="PID", help="power off when this process has ended")
    p.add_argument("--net", action="store_true", help="let L1 reach the network (default: only ssh in)")
    p.add_argument("--append", action="append", default=[], metavar="ARG", help="one more kernel argument")
    p.add_argument("--no-policy", action="store_true", help="L1 without policies/*.cil")
    _add_variant(p)


def _add_variant(p):
    p.add_argument("--variant", default=os.environ.get("CASEMATE_TESTBED_VARIANT", ""),
                   help="an L1 with the packages of testbed/variants/NAME (default: $CASEMATE_TESTBED_VARIANT or none)")


def _add_command(p):
    p.add_argument("-d", "--domain", default="unconfined_t",
                   help="SELinux domain (unconfined_t, initrc_t, ...) or full context")
    p.add_argument("--timeout", type=int, default=0, metavar="S", help="kill after S seconds, status 124")
    p.add_argument("-i", "--stdin", action="store_true", help="pass stdin on (default: empty)")
    p.add_argument("command", nargs=argparse.REMAINDER)


def parser():
    top = argparse.ArgumentParser(prog="testbed", description="An emulated SELinux-enforcing KVM host (L1).")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, function, text, named=True):
        p = verbs.add_parser(name, help=text, description=text)
        p.set_defaults(function=function)
        if named:
            p.add_argument("--name", default=os.environ.get("CASEMATE_TESTBED", "default"),
                           help="which L1 (default: $CASEMATE_TESTBED or 'default')")
        return p

    p = verb("build", verb_build, "make or revalidate everything, cached", named=False)
    p.add_argument("--no-policy", action="store_true", help="leave policies/*.cil out")
    _add_variant(p)
    _add_machine(verb("up", verb_up, "boot an L1 that stays up (builds first if needed)"))
    p = verb("exec", verb_exec, "run a command in L1 and return its status")
    p.add_argument("-t", "--terminal", action="store_true", help="give the command a terminal")
    _add_command(p)
    p = verb("run", verb_run, "boot a fresh L1, run one command, power off", named=False)
    _add_machine(p)
    p.add_argument("--push", action="append", default=[], metavar="SRC:DST", help="send files first")
    _add_command(p)
    p = verb("push", verb_push, "send files or directories, then restorecon")
    p.add_argument("source", nargs="+")
    p.add_argument("target")
    p = verb("pull", verb_pull, "fetch a file or directory")
    p.add_argument("source")
    p.add_argument("target")
    p = verb("shell", verb_shell, "interactive shell")
    p.add_argument("-d", "--domain", default="unconfined_t")
    p = verb("policy", verb_policy, "install policies/*.cil in a running L1 and relabel Casemate's places")
    p.add_argument("--live", action="store_true", help="run semodule inside L1 (slow) instead of here")
    p.add_argument("--check", action="store_true", help="only compile, here; needs no L1")
    _add_variant(p)
    p.add_argument("module", nargs="*", help="CIL files instead of policies/*.cil")
    p = verb("avc", verb_avc, "print denials and kills since L1 was ready")
    p.add_argument("--all", action="store_true", help="since boot, start-up noise included")
    p = verb("probe", verb_probe, "run a three-instruction KVM guest in L1")
    p.add_argument("-d", "--domain", default="unconfined_t")
    p = verb("down", verb_down, "stop an L1; its disk is thrown away")
    p.add_argument("--all", action="store_true", help="every instance of this cache")
    verb("status", verb_status, "list the instances; status 1 if none is up", named=False)
    verb("selftest", verb_selftest, "check in a fresh L1 that the testbed keeps its promises", named=False)
    verb("probe-host", verb_probe_host, "can this machine itself do what the testbed does?", named=False)
    return top


def main(argv):
    # Debian keeps mke2fs, depmod and others where a plain user's PATH does not look.
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    args = parser().parse_args(argv)
    try:
        image.use_variant(getattr(args, "variant", ""))
        return args.function(args)
    except Failure as e:
        print(f"testbed: {e}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130
