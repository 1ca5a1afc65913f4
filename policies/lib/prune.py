"""Which permissions of the module does no start, life and end of a sandbox need?

1. A policy whose every allow rule is also an auditallow rule is loaded into an emulated host (testbed), and the exercise
   runs. What the kernel granted by a rule, it logged: those permissions are needed, since without one of them the same
   access would be a denial. The others are candidates.
2. All candidates are taken away at once and the exercise runs again: it must hold, without a new denial. If it does
   not, the candidates are halved until those that break it are found.
"""
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from . import base, cil

TESTBED = base.ROOM.parent / "testbed/testbed"
EXERCISE = base.ROOM / "exercise"
_AVC = re.compile(r"avc:  (granted|denied)  \{ ([^}]*) \}.*?scontext=\S+?:\S+?:(\w+)\S* tcontext=\S+?:\S+?:(\w+)\S* "
                  r"tclass=(\w+)")


class Machine:
    """The emulated host."""

    def __init__(self, name):
        self.name = name

    def run(self, script, domain="unconfined_t"):
        return subprocess.run([TESTBED, "exec", "--name", self.name, "-d", domain, "--timeout", "600", "--", "sh", "-c",
                               script],
                              capture_output=True, text=True, check=False)

    def load(self, policy):
        subprocess.run([TESTBED, "push", "--name", self.name, policy, "/root/policy.trial"], check=True)
        # one write(2) of the whole, as selinuxfs wants it (sel_write_load)
        got = self.run("dd if=/root/policy.trial of=/sys/fs/selinux/load bs=64M 2>&1")
        if got.returncode:
            raise base.Broken(f"loading the policy: {got.stdout}{got.stderr}")

    def restore(self):
        self.run("load_policy")

    def exercise(self):
        """(held, what it said, [avc])."""
        subprocess.run([TESTBED, "push", "--name", self.name, EXERCISE, "/root/exercise"], check=True)
        self.run("pkill -x dmesg; dmesg -C; rm -f /root/log; (dmesg -w >/root/log 2>/dev/null </dev/null &)")
        got = self.run("sh /root/exercise")
        service = self.run("sh /root/exercise service", "initrc_t")
        log = self.run("sleep 0.5; pkill -x dmesg; grep -a 'avc: ' /root/log").stdout
        held = all("ALL-HOLD" in x.stdout for x in (got, service))
        return held, "".join(x.stdout + x.stderr for x in (got, service)), list(parse_log(log))


def parse_log(text):
    for verdict, perms, source, target, class_name in _AVC.findall(text):
        for perm in perms.split():
            yield verdict, source, target, class_name, perm


def rights(module):
    """[(rule, class, perm)] of all allow rules but other families' domains' and those behind a boolean that is off."""
    return [(rule, c, p) for rule in module.rules
            if rule.kind == "allow" and not any(n[0] == "booleanif" for n in rule.nest) and (rule.source in module.types or rule.source in module.attributes)
            for c, perms in module.permissions(rule) for p in perms]


def write(module, files, folder, without=(), audit=False):
    """The module's files with some rights left out."""
    gone = {(id(r.words), c, p) for r, c, p in without}
    out = []
    for name, statements in module.files:
        path = Path(folder) / name
        path.write_text("\n".join(_text(s, module, gone, audit) for _, s in statements) + "\n")
        out.append(path)
    return out


def _text(s, module, gone, audit):
    kind = s[0]
    if kind in ("true", "false", "optional", "booleanif"):
        first = 1 if kind in ("true", "false") else 2
        inner = [t for t in (_text(x, module, gone, audit) for x in s[first:]) if t]
        return "(" + " ".join([*(cil.show(x) for x in s[:first]), *inner]) + ")" if inner else ""
    if kind == "neverallow":
        return ""
    if kind != "allow":
        return cil.show(s)
    sets = module.sets[s[3]] if isinstance(s[3], str) else [(s[3][0], s[3][1])]
    out = []
    for class_name, perms in sets:
        left = [p for p in perms if (id(s), class_name, p) not in gone]
        if left:
            out += [f"({k} {s[1]} {s[2]} ({class_name} ({' '.join(left)})))" for k in
                    (("allow", "auditallow") if audit else ("allow",))]
    return "\n".join(out)


def covers(module, policy):
    """Does a granted access (source, target) fall under a rule? By the compiled policy's attributes."""
    known = {}

    def types(name):
        if name not in known:
            got = subprocess.run(["seinfo", "-x", "-a", name, policy], capture_output=True, text=True, check=False).stdout
            known[name] = set(re.findall(r"^\t(\w+)$", got, re.M)) | {name}
        return known[name]

    def check(rule, source, target):
        own = rule.source in module.types
        if source != rule.source if own else source not in types(rule.source):
            return False
        return target == source if rule.target == "self" else target in types(rule.target)
    return check


def find(name, say=print):
    """(needed, needless): two lists of rights."""
    base.ready()
    machine = Machine(name)
    files = base.module_files()
    module = cil.Module(files)
    everything = rights(module)
    with tempfile.TemporaryDirectory(dir=base.HOME) as folder:
        policy = Path(folder) / "policy"
        base.compile_policy(base.DEBIAN, write(module, files, folder, audit=True), policy, neverallow=False)
        try:
            machine.load(policy)
            held, said, log = machine.exercise()
            if not held:
                raise base.Broken(f"the exercise does not hold with the whole module:\n{said[-3000:]}")
            before = {x[1:] for x in log if x[0] == "denied"}
            granted = {x[1:] for x in log if x[0] == "granted"}
            say(f"{len(everything)} permissions in {len({id(r) for r, _, _ in everything})} rules; {len(granted)} different "
                f"accesses granted and {len(before)} denied in the exercise")
            check = covers(module, policy)
            needed = [x for x in everything
                      if any(c == x[1] and p == x[2] and check(x[0], s, t) for s, t, c, p in granted)]
            candidates = [x for x in everything if x not in needed]
            say(f"{len(candidates)} were not used; taking them away")
            needless = _halve(machine, module, files, folder, candidates, before, say)
        finally:
            machine.restore()
    return [x for x in everything if x not in needless], needless


def _halve(machine, module, files, folder, candidates, before, say, given=()):
    """The largest part of `candidates` found whose removal (on top of `given`) changes nothing."""
    if not candidates:
        return []
    policy = Path(folder) / "policy.less"
    base.compile_policy(base.DEBIAN, write(module, files, folder, [*given, *candidates]), policy, neverallow=False)
    machine.load(policy)
    held, said, log = machine.exercise()
    new = {x[1:] for x in log if x[0] == "denied"} - before
    if held and not any("casemate" in x[0] or "casemate" in x[1] for x in new):
        say(f"without {len(candidates)} more, all holds")
        return list(candidates)
    say(f"without {len(candidates)}: {'held' if held else said.strip().splitlines()[-1:]}, new denials {sorted(new)[:6]}")
    # a new denial names its permission: that one stays, the rest is tried again
    named = [x for x in candidates if any(x[1] == c and x[2] == p for _, _, c, p in new)]
    if named and len(named) < len(candidates):
        return _halve(machine, module, files, folder, [x for x in candidates if x not in named], before, say, given)
    if len(candidates) == 1:
        return []
    half = len(candidates) // 2
    first = _halve(machine, module, files, folder, candidates[:half], before, say, given)
    return first + _halve(machine, module, files, folder, candidates[half:], before, say, [*given, *first])


def main(argv):
    if len(argv) != 1:
        print("usage: policies/prune L1-NAME   (testbed/testbed up --name L1-NAME --append log_buf_len=64M; "
              "scripts/build; scripts/testbed-install L1-NAME)", file=sys.stderr)
        return 2
    _, needless = find(argv[0])
    grouped = {}
    for rule, class_name, perm in needless:
        grouped.setdefault((rule.file, rule.line, rule.source, rule.target, class_name), []).append(perm)
    for (file, line, source, target, class_name), perms in grouped.items():
        print(f"needless {file}:{line} {source} {target}:{class_name} {{ {' '.join(perms)} }}")
    print(f"{len(needless)} permissions that no exercise needs")
    return 0
