"""A policy in which every rule of the module has a twin: a domain like the rule's own in everything but that rule.

For a rule of one of our types (say casemate_runner_t) the twin has all attributes and all other rules of that type, and
the deny rules and constraints hold for it too. So "the twin is denied" says two things at once: the rule is what grants
the right, and nothing else does, be it the base policy through an attribute or another rule of ours.

For a rule of an attribute (casemate_caller) a fresh domain stands for the attribute's members, on both sides. A rule of
a type that is not ours (casemate_profiles.cil) is given to a fresh domain instead, and the type itself must be denied.
"""
from collections import namedtuple

from . import cil

HIGH, PAIR, LOW = "s0-s0:c0.c1023", "s0:c1,c2", "s0"
# Attributes of the base policy that are targets of ours: a fresh type stands for their members.
ATTRIBUTES = ("domain", "tmpfsfile", "ptynode", "ttynode", "non_security_file_type", "noxattrfs")
# Domains and images that carry a pair; the second with the role of objects.
PAIRED = ("casemate_runner_t", "svirt_t", "container_kvm_t")
IMAGES = ("casemate_image_t", "casemate_memory_t", "svirt_image_t", "container_file_t")

# May `subject` do it, and may its `twin` not? Both are full contexts, as is each target.
Question = namedtuple("Question", "rule subject target twin twin_target class_name perm")
# What does a new object become, for `subject` (must contain `wanted`) and for `twin` (must not)?
Creation = namedtuple("Creation", "rule subject twin target class_name name wanted")


class Twins:
    """`text` is the module with all twins in it; `questions` and `creations` are what shows each rule."""

    def __init__(self, files):
        self.module = cil.Module(files)
        self.questions, self.creations, self.ioctls = [], [], []
        self._twins_of = {}         # our type or attribute -> its twins
        self._stand_ins = {}        # fresh type -> attribute that it stands for
        self._foreign = []          # twins of types that are not ours
        for number, rule in enumerate(self.module.rules, 1):
            rule.twin = f"twin_{number:03}_t"
            ours = rule.source in self.module.types or rule.source in self.module.attributes
            (self._twins_of.setdefault(rule.source, []) if ours else self._foreign).append(rule.twin)
        for rule in self.module.rules:
            self._ask(rule)
        self.text = self._text()

    # --- questions ---
    def _ask(self, rule):
        if rule.source in self.module.types:
            yes, no = rule.source, rule.twin
        elif rule.source in self.module.attributes:
            yes, no = self._stand_in(rule.source), rule.twin
        else:
            yes, no = rule.twin, rule.source
        level = PAIR if rule.source in PAIRED else HIGH
        subject, twin = (f"system_u:system_r:{t}:{level}" for t in (yes, no))
        if rule.kind == "allow" and self.module.permissions(rule)[0][0] == "filesystem" and self._is_file(rule.source):
            subject, twin = (f"system_u:object_r:{t}:{LOW}" for t in (yes, no))
        if rule.kind == "allowx":
            self.ioctls.append((rule, subject, twin))
        elif rule.kind == "allow":
            for target in self._targets(rule.target, subject):
                for class_name, perms in self.module.permissions(rule):
                    for perm in perms:
                        other = twin if rule.target == "self" else target
                        self.questions.append(Question(rule, subject, target, twin, other, class_name, perm))
        else:
            name = rule.words[4].strip('"') if len(rule.words) == 6 else ""
            if rule.kind == "rangetransition":
                subject, twin = (c.replace(HIGH, LOW) for c in (subject, twin))
            wanted = HIGH if rule.kind == "rangetransition" else f":{rule.words[-1]}:"
            target = f"system_u:object_r:{rule.target}:{LOW}"
            self.creations.append(Creation(rule, subject, twin, target, rule.words[3], name, wanted))

    def _targets(self, target, subject):
        if target == "self":
            return [subject]
        types = [target]
        if target in ATTRIBUTES:
            types = [self._stand_in(target)]
        elif target in self.module.attributes:
            types = self.module.types_of(target)
        return [self._object(t) for t in types]

    def _object(self, type_):
        if type_ in PAIRED:
            return f"system_u:system_r:{type_}:{PAIR}"
        if type_ in IMAGES:
            return f"system_u:object_r:{type_}:{PAIR}"
        domain = type_ == "casemate_jailer_t" or self._stand_ins.get(type_) == "domain"
        return f"system_u:{'system_r' if domain else 'object_r'}:{type_}:{HIGH if domain else LOW}"

    def _is_file(self, name):
        files = self.module.types_of("casemate_file")
        return name == "casemate_file" or name in files

    def _stand_in(self, attribute):
        name = f"stands_for_{attribute}_t"
        self._stand_ins[name] = attribute
        return name

    # --- text ---
    def _text(self):
        out = []
        domains = list(self._foreign)
        for source, twins in self._twins_of.items():
            own = [source] if source in self.module.types else []
            out += [f"(typeattribute twins_of_{source})", f"(typeattributeset twins_of_{source} ({' '.join(own + twins)}))"]
            domains += twins if not own and not self._is_file(source) else []
        for name, attribute in self._stand_ins.items():
            out.append(f"(typeattributeset {attribute} ({name}))")
            domains += [name] if attribute in self.module.attributes and not self._is_file(attribute) else []
        for name in [r.twin for r in self.module.rules] + list(self._stand_ins):
            out.append(f"(type {name})")
            out += [f"(roletype {role} {name})" for role in ("object_r", "system_r", "unconfined_r")]
        out.append(f"(typeattributeset domain ({' '.join(domains)}))")
        # the programs that try the operations start from the administrator's shell
        out.append("(allow unconfined_t twins_of_casemate_runner_t (process (transition)))")
        for rule in self.module.rules:
            twins = self._twins_of.get(rule.source)
            rule.holder = f"has_{rule.twin}" if twins else rule.twin
            if twins:
                others = [rule.source] + [t for t in twins if t != rule.twin]
                out += [f"(typeattribute {rule.holder})", f"(typeattributeset {rule.holder} ({' '.join(others)}))"]
        rules = {id(r.words): r for r in self.module.rules}
        for _, statements in self.module.files:
            out += [self._written(s, rules) for _, s in statements]
        return "\n".join(out) + "\n"

    def _written(self, s, rules):
        kind = s[0]
        if id(s) in rules:
            return cil.show([kind, rules[id(s)].holder, *s[2:]])
        if kind in ("true", "false"):
            return f"({kind} {' '.join(self._written(x, rules) for x in s[1:])})"
        if kind in ("optional", "booleanif"):
            return f"({kind} {cil.show(s[1])} {' '.join(self._written(x, rules) for x in s[2:])})"
        if kind in ("neverallow", "filecon"):
            return ""
        if kind == "boolean":
            return cil.show([kind, s[1], "true"])
        if kind in ("deny", "mlsconstrain", "dontaudit", "typeattributeset"):
            return cil.show([kind, *(self._with_twins(x) for x in s[1:])])
        return cil.show(s)

    def _with_twins(self, node):
        """Where one of our types stands, its twins stand too."""
        if isinstance(node, str):
            return f"twins_of_{node}" if node in self._twins_of and node in self.module.types else node
        return [self._with_twins(x) for x in node]


def judge(twins, allowed, created, excused):
    """[complaint]: rules that do not grant, twins that are not denied.

    `allowed(subject, target, class, perm)` and `created(subject, target, class, name)` are a policy's answers (None: it
    does not know that type, class or permission); `excused(rule, class, perm)` is a reason why a right stays in the
    module although the base policy grants it too.
    """
    complaints, shown = [], {}
    for q in twins.questions:
        yes = allowed(q.subject, q.target, q.class_name, q.perm)
        no = allowed(q.twin, q.twin_target, q.class_name, q.perm)
        shown.setdefault((q.rule, q.class_name, q.perm), []).append((yes, no, q))
    for (rule, class_name, perm), answers in shown.items():
        known = [a for a in answers if a[0] is not None and a[1] is not None]
        if not known:
            if not rule.optional():
                complaints.append(f"{rule}: {class_name} {perm}: the policy knows no such type, class or permission")
            continue
        for yes, _, q in known:
            if not yes:
                complaints.append(f"{rule}: does not grant {q.subject} {perm} on {q.target}:{class_name}")
        needless = all(no for _, no, _ in known)
        if needless and not excused(rule, class_name, perm):
            complaints.append(f"{rule}: {class_name} {perm} is granted without this rule as well")
    for c in twins.creations if created else []:
        yes, no = (created(s, c.target, c.class_name, c.name) for s in (c.subject, c.twin))
        if yes is None or no is None:
            if not c.rule.optional():
                complaints.append(f"{c.rule}: the policy knows no such type")
        elif c.wanted not in yes:
            complaints.append(f"{c.rule}: a new object becomes {yes}")
        elif c.wanted in no:
            complaints.append(f"{c.rule}: without it a new object becomes {no} as well")
    return complaints
