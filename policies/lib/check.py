"""What policies/check checks. Each function raises base.Broken, or returns a sentence of what held."""
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import base, cil, twins
from .base import Broken
from .oracle import Oracle

BASES = {"Debian trixie's policy": base.DEBIAN, "a Fedora-like policy": base.FEDORA_LIKE}
# The files that older libsepol cannot read, and that go together.
DENY = ("casemate_deny.cil", "casemate_deny_neverallow.cil")
REVIEWED = base.ROOM / "runner.rules"
RUNNER = "system_u:system_r:casemate_runner_t"
# A rule that somebody adds must not reach the runner: deny rules take it away.
CONTROL = """(allow casemate_runner_t etc_t (file (open read)))
(allow casemate_runner_t self (capability (sys_admin)))
(allow casemate_runner_t self (process (execmem)))
"""
# Each breaks one neverallow rule that holds without deny rules too: compiling must fail.
FORBIDDEN = (
    "(allow casemate_runner_t tmp_t (file (relabelfrom)))",
    "(allow casemate_runner_t self (capability (sys_admin)))",
    "(allow casemate_runner_t kvm_device_t (chr_file (create)))",
    "(allow casemate_runner_t casemate_image_t (file (open)))",
    "(allow casemate_runner_t casemate_key_t (file (read)))",
    "(allow casemate_runner_t casemate_runner_t (process (ptrace)))",
    "(allow casemate_runner_t casemate_runner_t (unix_stream_socket (connectto)))",
    "(allow casemate_jailer_t security_t (security (load_policy)))",
    "(allow casemate_jailer_t etc_t (file (relabelfrom)))",
    "(allow casemate_jailer_t self (process (setcurrent)))",
)


def compiles(folder):
    """Leaves Debian's in folder/policy and folder/policy.older, for the checks that follow."""
    for place in reversed(BASES.values()):
        base.compile_policy(place, base.module_files(), folder / "policy", contexts=folder / "file_contexts")
        base.compile_policy(place, base.module_files(DENY), folder / "policy.older")
    return f"compiles with {' and '.join(BASES)}, with deny rules and without, neverallow rules hold"


def refuses(folder):
    rule = folder / "zz_forbidden.cil"
    for text in FORBIDDEN:
        rule.write_text(text + "\n")
        try:
            # without deny rules, which would take the right away before it is judged
            base.compile_policy(base.FEDORA_LIKE, [*base.module_files(DENY), rule], folder / "policy.bad")
        except Broken as e:
            if "neverallow" not in str(e):
                raise
            continue
        raise Broken(f"no neverallow rule refuses {text}")
    return f"{len(FORBIDDEN)} rules that must never be are refused"


def unreachable(folder):
    rule = folder / "zz_control.cil"
    rule.write_text(CONTROL)
    base.compile_policy(base.DEBIAN, [*base.module_files(), rule], folder / "policy.control")
    if (folder / "policy").read_bytes() != (folder / "policy.control").read_bytes():
        raise Broken("a rule added by another module changed what the runner may do")
    return "rules of other modules do not reach the runner"


def twin_answers(folder):
    """Every rule grants, and its twin is denied on one of the bases at least."""
    made = twins.Twins(base.module_files())
    text = folder / "twins.cil"
    text.write_text(made.text)
    granted_elsewhere = []
    for place in BASES.values():
        base.compile_policy(place, [text], folder / "policy.twins", neverallow=False)
        oracle = Oracle(folder / "policy.twins")
        needless = set()

        def excused(rule, class_name, perm, needless=needless):
            needless.add((rule, class_name, perm))
            return True
        complaints = twins.judge(made, oracle.may, None, excused)
        if complaints:
            raise Broken("\n".join(complaints))
        granted_elsewhere.append(needless)
    both = set.intersection(*granted_elsewhere)
    if both:
        raise Broken("\n".join(f"{rule}: {c} {p} is granted by every base policy" for rule, c, p in both))
    return f"{len(made.module.rules)} rules, each with a twin that lacks its right"


def needless_on(place, folder):
    """The rights of ours that one base policy grants by itself."""
    made = twins.Twins(base.module_files())
    text = folder / "twins.cil"
    text.write_text(made.text)
    base.compile_policy(place, [text], folder / "policy.twins", neverallow=False)
    oracle, found = Oracle(folder / "policy.twins"), set()
    twins.judge(made, oracle.may, None, lambda rule, c, p: found.add((rule.key(), c, p)) or True)
    return found


def categories(folder):
    """Two runners stay apart by our own constraints, whatever the base policy's are; the jailer reaches both."""
    mine, other, overlap = (f"s0:{c}" for c in ("c1,c2", "c3,c4", "c1,c3"))
    held = 0
    # everything that a careless module might allow
    rule = folder / "zz_open.cil"
    opened = {"casemate_image_t": {"file": "read write getattr", "blk_file": "read write getattr", "dir": "search read",
                                   "fifo_file": "read write getattr", "sock_file": "write", "chr_file": "read write"},
              "self": {"unix_stream_socket": "connectto read write getattr", "unix_dgram_socket": "sendto",
                       "process": "signal ptrace getattr", "fd": "use", "key": "read view", "shm": "read getattr",
                       "msgq": "read", "sem": "read", "tcp_socket": "read", "vsock_socket": "read", "tun_socket":
                       "attach_queue", "anon_inode": "read", "io_uring": "override_creds", "file": "read"}}
    rule.write_text("\n".join(f"(allow casemate_runner_t {t} ({c} ({p})))" for t, of in opened.items() for c, p in of.items()))
    for name, place in BASES.items():
        base.compile_policy(place, [*base.module_files(DENY), rule], folder / "policy.open", neverallow=False)
        oracle = Oracle(folder / "policy.open")
        for target, of in opened.items():
            for class_name, perms in of.items():
                for perm in perms.split():
                    at = f"system_u:object_r:{target}" if target != "self" else RUNNER
                    answers = [oracle.may(f"{RUNNER}:{mine}", f"{at}:{level}", class_name, perm)
                               for level in (mine, other, overlap, "s0:c1,c2,c3")]
                    if answers != [True, False, False, False]:
                        raise Broken(f"{name}: {class_name} {perm} on {target}: {answers} for the own pair, another, an "
                                     "overlapping one, a superset")
                    held += 1
        if not oracle.may("system_u:system_r:casemate_jailer_t:s0-s0:c0.c1023", f"{RUNNER}:{other}", "process", "sigkill"):
            raise Broken(f"{name}: the jailer cannot end a runner")
        # what another manager's confined guest may not do either, were it allowed to
        rule2 = folder / "zz_foreign.cil"
        rule2.write_text("(allow svirt_t casemate_image_t (file (getattr)))\n"
                         "(allow svirt_t casemate_runner_t (unix_stream_socket (connectto)))\n"
                         "(allow svirt_t svirt_image_t (file (getattr)))\n")
        base.compile_policy(place, [*base.module_files(DENY), rule2], folder / "policy.foreign", neverallow=False)
        oracle = Oracle(folder / "policy.foreign")
        guest = "system_u:system_r:svirt_t:s0:c3,c4"
        for target, class_name, perm in ((f"system_u:object_r:casemate_image_t:{mine}", "file", "getattr"),
                                         (f"{RUNNER}:{mine}", "unix_stream_socket", "connectto")):
            if oracle.may(guest, target, class_name, perm) or not oracle.may(guest, target.replace(mine, other), class_name, perm):
                raise Broken(f"{name}: {perm} of another manager's guest is not judged by categories")
        held += 2
    return f"{held} rights are kept apart by our own category constraints"


def without_deny(folder):
    """What the runner may do beyond the reviewed list where deny rules cannot be had: said, not hidden."""
    oracle = Oracle(folder / "policy.older")
    may = [t for t in ("etc_t", "lib_t", "ld_so_t", "proc_t", "null_device_t") for c in ("file", "chr_file")
           if oracle.may(f"{RUNNER}:s0:c1,c2", f"system_u:object_r:{t}:s0", c, "open")]
    if not may:
        raise Broken("without deny rules nothing would change: they are not needed")
    return f"without deny rules the runner may also open {', '.join(may)}"


def opens_nothing(folder):
    """No `open` on any type there is, asked one by one."""
    oracle = Oracle(folder / "policy")
    names = set()
    for place in [*base.DEBIAN.glob("*.cil"), *base.module_files()]:
        names.update(re.findall(r"^\s*\(type (\w+)\)", place.read_text(), re.M))
    asked = 0
    for type_ in sorted(names):
        for class_name in ("file", "dir", "chr_file", "blk_file", "fifo_file", "sock_file"):
            # the target's level is the one that most is allowed on
            answer = oracle.may(f"{RUNNER}:s0:c1,c2", f"system_u:object_r:{type_}:s0", class_name, "open")
            if answer:
                raise Broken(f"the runner may open {type_}:{class_name}")
            asked += answer is False
    if asked < 6000:
        raise Broken(f"only {asked} questions could be asked")
    return f"the runner opens nothing: {asked} questions"


def reviewed(folder, accept=False):
    if not shutil.which("sesearch"):
        return "skipped: sesearch (setools) is not installed, the runner's rules were not compared"
    got = subprocess.run(["sesearch", "-A", "-s", "casemate_runner_t", folder / "policy"], capture_output=True, text=True,
                         check=True).stdout
    # the policy's own names of generated attributes are numbered: rules are shown by type
    lines = {re.sub(r"^(allow|allowxperm) (domain|deny_rule_attr_\d+) ", r"\1 casemate_runner_t ", x) for x in got.splitlines()}
    merged = _merged(sorted(x for x in lines if x))
    if accept:
        REVIEWED.write_text("\n".join(merged) + "\n")
    if REVIEWED.read_text().splitlines() != merged:
        raise Broken("the runner's rights differ from policies/runner.rules; if that is meant: policies/check --accept\n"
                     + "\n".join(merged))
    return f"the runner has {len(merged)} rules as reviewed"


def _merged(lines):
    """Rules on the same pair and class as one, whichever attribute each came by."""
    perms, rest = {}, []
    for line in lines:
        match = re.match(r"(allow \S+ \S+:\S+) (?:\{ ([^}]*) \}|(\S+));$", line)
        if match:
            perms.setdefault(match[1], set()).update((match[2] or match[3]).split())
        else:
            rest.append(line)
    def text(words):
        words = sorted(words)
        return words[0] if len(words) == 1 else "{ " + " ".join(words) + " }"
    return sorted([f"{head} {text(p)};" for head, p in perms.items()] + rest)


def main(argv):
    try:
        base.ready()
        with tempfile.TemporaryDirectory(dir=base.HOME) as name:
            folder = Path(name)
            if argv[:1] == ["--accept"]:
                compiles(folder)
                print(f"policies/check: {reviewed(folder, accept=True)}")
                return 0
            for check in (compiles, refuses, unreachable, twin_answers, categories, without_deny, opens_nothing, reviewed):
                print(f"policies/check: {check(folder)}", flush=True)
    except base.Skip as e:
        print(f"policies/check: skipped: {e}")
    except (Broken, cil.CilError) as e:
        print(f"policies/check: {e}", file=os.sys.stderr)
        return 1
    return 0
