"""The twins' questions for a kernel that has the twin policy loaded, and the judgement of its answers."""
import sys
import tempfile
from pathlib import Path

from . import base, check, twins
from .base import Broken

# What a program can try of the runner's rules: (target, class) -> operations on a descriptor that it is given.
OPERATIONS = {
    ("casemate_runner_exec_t", "file"): ("exec",),
    ("self", "process"): ("self-signal", "self-getcap"),
    ("casemate_jailer_t", "fd"): ("fd",),
    ("casemate_image_t", "file"): ("image-read", "image-write", "image-getattr"),
    ("casemate_image_t", "blk_file"): ("imageblock-read", "imageblock-ioctl"),
    ("casemate_content_t", "file"): ("content-read", "content-getattr"),
    ("casemate_content_t", "blk_file"): ("contentblock-read", "contentblock-ioctl"),
    # The kernel's answers alone: memory on huge pages is a memfd that nobody opens by name, memfd_file is a later kernel's
    # class, and L1 has no file system without labels.
    ("casemate_memory_t", "file"): (),
    ("casemate_memory_t", "memfd_file"): (),
    ("casemate_plan_t", "memfd_file"): (),
    **{(f"{kind}_t", "file"): () for kind in ("nfs", "cifs", "fusefs", "dosfs")},
    ("casemate_plan_t", "file"): ("plan-read", "plan-getattr"),
    ("kvm_device_t", "chr_file"): ("kvm-ioctl",),
    ("self", "unix_stream_socket"): ("self-socket",),
}
# An ioctl that the rule does not name: denied to the runner, and not to the twin, whom nothing limits.
OTHER_IOCTLS = {
    ("casemate_image_t", "blk_file"): "imageblock-other",
    ("casemate_content_t", "blk_file"): "contentblock-other",
    ("kvm_device_t", "chr_file"): "kvm-other",
}
EPERM, EBADF, EACCES = 1, 9, 13

_RUNNER, _IMAGE = "system_u:system_r:casemate_runner_t:s0", "system_u:object_r:casemate_image_t:s0"
# What holds between VMs and between managers: (question, wanted). Names begin with the number in docs/svirt.md.
SEPARATION = {
    "14: the pair decides": [
        *((f"may {_RUNNER}:c1,c2 {_IMAGE}{level} file {perm}", level in ("", ":c1,c2"))
          for level in (":c1,c2", "", ":c3,c4", ":c1,c3", ":c1,c2,c3") for perm in ("read", "write")),
        (f"may {_RUNNER}:c1,c2 {_RUNNER}:c1,c2 process signal", True),
        (f"may {_RUNNER}:c1,c2 {_RUNNER}:c1,c3 process signal", False),
        (f"may system_u:system_r:casemate_jailer_t:s0-s0:c0.c1023 {_IMAGE}:c1,c2 file relabelfrom", True)],
    "15: other types do not reach ours with the same pair, and reach their own": [
        *((f"may system_u:system_r:{guest}:s0:c1,c2 {target}:s0:c1,c2 file read", wanted)
          for guest, own in (("svirt_t", "svirt_image_t"), ("container_t", "container_file_t"),
                             ("container_kvm_t", "container_file_t"))
          for target, wanted in (("system_u:object_r:casemate_image_t", False), (f"system_u:object_r:{own}", True))),
        *((f"may {_RUNNER}:c1,c2 system_u:object_r:{image}:s0:c1,c2 file read", False)
          for image in ("svirt_image_t", "container_file_t")),
        (f"may system_u:system_r:svirt_t:s0:c1,c2 {_RUNNER}:c1,c2 unix_stream_socket connectto", False)],
    "49: /dev/kvm is every runner's": [
        (f"may {_RUNNER}:{pair} system_u:object_r:kvm_device_t:s0 chr_file {perm}", perm != "open")
        for pair in ("c1,c2", "c3,c4") for perm in ("read", "ioctl", "open")],
}


def questions(made):
    """Each question once, in an order that stays."""
    asked = {}
    for q in made.questions:
        asked[f"may {q.subject} {q.target} {q.class_name} {q.perm}"] = None
        asked[f"may {q.twin} {q.twin_target} {q.class_name} {q.perm}"] = None
    for c in made.creations:
        for who in (c.subject, c.twin):
            asked[f"becomes {who} {c.target} {c.class_name} {c.name}".rstrip()] = None
    for group in SEPARATION.values():
        asked.update((question, None) for question, _ in group)
    return list(asked)


def attempts(made, needless):
    """[(operation, type, wanted)]: what the runner may, its twin may not; and for xperms the other way round."""
    found = []
    for rule in made.module.rules:
        if rule.source != "casemate_runner_t":
            continue
        if rule.kind == "allowx":
            place = (rule.target, rule.words[3][1])
            if place not in OTHER_IOCTLS:
                raise Broken(f"{rule}: no operation tries it: policies/lib/kernel.py")
            found += [(OTHER_IOCTLS[place], "casemate_runner_t", False), (OTHER_IOCTLS[place], rule.twin, True)]
            continue
        for class_name, perms in made.module.permissions(rule):
            if (rule.target, class_name) not in OPERATIONS:
                raise Broken(f"{rule}: no operation tries it: policies/lib/kernel.py")
            by_base = all((rule.key(), class_name, p) in needless for p in perms)
            for operation in OPERATIONS[rule.target, class_name]:
                found.append((operation, "casemate_runner_t", True))
                if not by_base:
                    found.append((operation, rule.twin, False))
    return found


def prepare(folder):
    base.ready()
    made = twins.Twins(base.module_files())
    (folder / "twins.cil").write_text(made.text)
    base.compile_policy(base.DEBIAN, [folder / "twins.cil"], folder / "policy", neverallow=False)
    (folder / "questions").write_text("\n".join(questions(made)) + "\n")
    tried = attempts(made, check.needless_on(base.DEBIAN, folder))
    (folder / "attempts").write_text("\n".join(f"{o} {t}" for o, t, _ in tried) + "\n")
    print(f"{len(made.module.rules)} rules, {len(questions(made))} questions, {len(tried)} attempts")


def judge(folder):
    made = twins.Twins(base.module_files())
    asked, said = questions(made), (folder / "answers").read_text().splitlines()
    if len(asked) != len(said):
        raise Broken(f"{len(asked)} questions, {len(said)} answers")
    answer = dict(zip(asked, said))

    def allowed(subject, target, class_name, perm):
        return {"1": True, "0": False}.get(answer[f"may {subject} {target} {class_name} {perm}"])

    def created(subject, target, class_name, name):
        got = answer[f"becomes {subject} {target} {class_name} {name}".rstrip()]
        return None if got == "-" else got
    # granted by Debian's policy to every domain, and needed where that is not so
    with tempfile.TemporaryDirectory(dir=base.HOME) as name:
        elsewhere = check.needless_on(base.FEDORA_LIKE, Path(name))
        needless = check.needless_on(base.DEBIAN, Path(name))
    complaints = twins.judge(made, allowed, created, lambda rule, c, p: (rule.key(), c, p) not in elsewhere)
    for what, group in SEPARATION.items():
        complaints += [f"{what}: {question}: {answer[question]}" for question, wanted in group
                       if answer[question] != str(int(wanted))]
    complaints += _judge_attempts(made, needless, (folder / "results").read_text().splitlines())
    if complaints:
        raise Broken("\n".join(complaints))
    print(f"{len(made.module.rules)} rules shown by the kernel: {len(asked)} answers, "
          f"{len(attempts(made, needless))} attempts")


def _judge_attempts(made, needless, results):
    wanted = attempts(made, needless)
    if len(wanted) != len(results):
        return [f"{len(wanted)} attempts, {len(results)} results: {results[-2:]}"]
    complaints = []
    for (operation, type_, allow), line in zip(wanted, results):
        got = line.removeprefix(f"{operation} {type_} ")
        denied = got in (str(EPERM), str(EBADF), str(EACCES))
        # without a single fd, stdio included, a program does not even come to its main
        denied |= operation == "fd" and got == "-1"
        # the other ioctls are not the device's: once allowed, it refuses them in its own words
        allowed = got == "0" or (operation.endswith("-other") and got in ("22", "25", "0"))
        if not (allowed if allow else denied):
            complaints.append(f"{operation} in {type_}: {got}, wanted {'allowed' if allow else 'denied'}")
    return complaints


def main(argv):
    try:
        if len(argv) == 2 and argv[0] == "--judge":
            judge(Path(argv[1]))
        elif len(argv) == 1:
            prepare(Path(argv[0]))
        else:
            print("usage: policies/twins [--judge] DIR", file=sys.stderr)
            return 2
    except (base.Skip, Broken) as e:
        print(f"policies/twins: {e}", file=sys.stderr)
        return 1
    return 0
