"""The testbed proves itself: what the README promises, checked in one fresh L1.

Callers: `testbed selftest`. Prints a line per check and ends with `N passed, N failed`.
Negative checks stand beside the positive ones: an L1 that denies nothing proves nothing.
"""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import common, machine

TOOL = common.ROOM / "testbed"
checks = []


def check(function):
    checks.append(function)
    return function


class Bench:
    """The tool as a user calls it, on one instance."""

    def __init__(self, name, scratch):
        self.name, self.scratch = name, scratch

    def tool(self, verb, *args, **options):
        return subprocess.run([sys.executable, str(TOOL), verb, "--name", self.name, *map(str, args)],
                              capture_output=True, text=True, timeout=120, check=False, **options)

    def sh(self, script, *flags):
        return self.tool("exec", *flags, "--", "sh", "-c", script)

    def out(self, script, *flags):
        done = self.sh(script, *flags)
        assert done.returncode == 0, f"{script}: ended with {done.returncode}: {done.stderr}"
        return done.stdout.strip()


def expect(got, wanted):
    assert got == wanted, f"got {got!r}, expected {wanted!r}"


@check
def selinux_is_enforcing(b):
    expect(b.out("cat /sys/fs/selinux/enforce"), "1")


@check
def a_confined_domain_is_denied_what_a_service_may(b):
    b.out("cp /bin/cat /usr/bin/confined; chcon -t hostname_exec_t /usr/bin/confined")
    read = ["exec", "-d", "initrc_t", "--"]
    assert "root:" in b.tool(*read, "cat", "/etc/shadow").stdout
    assert ":hostname_t:" in b.tool(*read, "/usr/bin/confined", "/proc/self/attr/current").stdout
    denied = b.tool(*read, "/usr/bin/confined", "/etc/shadow")
    expect((denied.returncode, denied.stdout), (1, ""))
    logged = [x for x in b.tool("avc").stdout.splitlines() if ":shadow_t:" in x and ":hostname_t:" in x]
    assert logged, "the denial is not in the log"


@check
def a_domain_that_may_not_be_entered_is_refused(b):
    expect(b.sh("true", "-d", "system_u:system_r:svirt_t:s0:c1,c2").returncode, 125)


@check
def domains_are_as_on_a_host(b):
    expect(b.out("id -Z"), "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023")
    expect(b.out("id -Z", "-d", "initrc_t"), "system_u:system_r:initrc_t:s0")


@check
def an_unknown_domain_is_refused(b):
    expect(b.sh("true", "-d", "nosuch_t").returncode, 125)


@check
def pipes_belong_to_the_domain(b):
    assert ":initrc_t:" in b.out("ls -LZ /proc/self/fd/1", "-d", "initrc_t")


@check
def the_kvm_device_is_labelled_and_runs_a_guest(b):
    assert ":kvm_device_t:" in b.out("ls -Z /dev/kvm")
    done = b.tool("probe")
    assert done.returncode == 0 and "right" in done.stdout, done.stdout
    expect(b.out("cat /sys/module/kvm_amd/parameters/nested"), "1")


@check
def landlock_user_namespaces_and_cgroups_are_there(b):
    assert "landlock" in b.out("cat /sys/kernel/security/lsm").split(",")
    assert b.out("unshare -Ur id -u") == "0"
    assert {"cpu", "memory", "pids"} <= set(b.out("cat /sys/fs/cgroup/cgroup.subtree_control").split())


@check
def status_and_streams_are_kept_apart(b):
    done = b.sh("echo out; echo err >&2; exit 7")
    expect((done.returncode, done.stdout, done.stderr), (7, "out\n", "err\n"))
    expect(b.tool("exec", "--", "nosuch-command").returncode, 127)
    expect(b.sh("kill -9 $$").returncode, 137)


@check
def arguments_arrive_as_they_are(b):
    args = ["a b", "c'd", "$HOME", "*", "", "\\n", '"']
    expect(b.tool("exec", "--", "printf", "%s|", *args).stdout, "".join(a + "|" for a in args))


@check
def input_is_passed_only_when_asked(b):
    expect(b.tool("exec", "-i", "--", "cat", input="hello").stdout, "hello")
    expect(b.tool("exec", "--", "cat", input="hello").stdout, "")


@check
def a_timeout_kills_the_command(b):
    expect(b.sh("sleep 4242", "--timeout", "1").returncode, 124)
    assert "sleep 4242" not in b.out("ps ax -o args | grep '^sleep' || true")


@check
def a_daemon_left_behind_does_not_hold_the_call(b):
    began = time.monotonic()
    b.out("sleep 30 & echo started")
    assert time.monotonic() - began < 10


@check
def two_commands_run_at_once(b):
    argv = [sys.executable, str(TOOL), "exec", "--name", b.name, "--", "sh", "-c"]
    waits = subprocess.Popen([*argv, "until [ -e /tmp/met ]; do sleep 0.1; done"])
    b.out("touch /tmp/met")
    expect(waits.wait(30), 0)


@check
def files_go_both_ways_with_modes_and_labels(b):
    tree = Path(b.scratch) / "tree"
    tree.mkdir()
    (tree / "f").write_text("x")
    (tree / "f").chmod(0o640)
    (tree / "l").symlink_to("f")
    expect(b.tool("push", tree, "/root/").returncode, 0)
    expect(b.tool("push", tree / "f", "/usr/bin/renamed").returncode, 0)
    assert ":bin_t:" in b.out("ls -Z /usr/bin/renamed")
    expect(b.out("stat -c %a:%u /root/tree/f; readlink /root/tree/l"), "640:0\nf")
    expect(b.tool("pull", "/root/tree", Path(b.scratch) / "back").returncode, 0)
    expect((Path(b.scratch) / "back/f").stat().st_mode & 0o777, 0o640)
    expect(b.tool("pull", "/root/nothere", b.scratch).returncode, 125)


@check
def a_module_can_be_installed_while_it_lives(b):
    module = Path(b.scratch) / "selftest.cil"
    module.write_text("(type selftest_t)\n(roletype system_r selftest_t)\n"
                      "(typeattributeset domain (selftest_t))\n")
    known = "echo system_u:system_r:selftest_t:s0 > /proc/self/attr/exec"
    assert b.sh(known).returncode != 0, "the type is there before its module"
    done = b.tool("policy", module)
    assert done.returncode == 0, done.stderr
    b.out(known)
    expect(b.out("cat /sys/fs/selinux/enforce; ls /etc/selinux/default/policy"), "1policy.33")


@check
def a_broken_module_changes_nothing(b):
    module = Path(b.scratch) / "broken.cil"
    module.write_text("(allow nosuch_t self (process (signal)))\n")
    expect(b.tool("policy", module).returncode, 125)
    expect(b.out("id -Z"), "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023")


@check
def an_end_in_l1_is_noticed(b):
    b.sh("echo o > /proc/sysrq-trigger; sleep 5")
    deadline = time.monotonic() + 10
    while machine.Instance(b.name).alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    expect(b.sh("true").returncode, 125)


def run():
    inst = machine.Instance(f"selftest-{os.getpid()}")
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(inst.name, scratch)
        try:
            done = bench.tool("up", "--parent", os.getpid())
            if done.returncode != 0:
                raise common.Failure(f"selftest: no L1: {done.stderr}")
            for function in checks:
                name = function.__name__.replace("_", " ")
                try:
                    function(bench)
                    print(f"ok    {name}", flush=True)
                except (AssertionError, OSError, subprocess.SubprocessError) as e:
                    failed += 1
                    print(f"FAIL  {name}: {e}", flush=True)
        finally:
            machine.down(inst)
            machine.forget(inst)
    print(f"{len(checks) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0
