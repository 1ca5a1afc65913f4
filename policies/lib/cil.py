"""CIL text as nested lists, and the rules in it. Pure; reads no file but those it is given."""
import re

_TOKEN = re.compile(r'\s+|;[^\n]*|("[^"]*")|([()])|([^\s()";]+)')

# Statements that say what somebody may do or what a new object becomes: each needs its twin.
RULES = ("allow", "allowx", "typetransition", "rangetransition")
# Statements that carry no right of their own.
PLAIN = ("type", "typeattribute", "typeattributeset", "roletype", "classpermission", "classpermissionset", "boolean",
         "dontaudit", "deny", "neverallow", "mlsconstrain", "filecon")
# Statements that hold others.
NESTS = ("optional", "booleanif", "true", "false")


class CilError(Exception):
    """Text that is not CIL, or a statement that nobody here knows."""


class Rule:
    """One rule: where it stands, and its words."""

    def __init__(self, file, line, words, nest):
        self.file, self.line, self.words, self.nest = file, line, words, nest

    kind = property(lambda self: self.words[0])
    source = property(lambda self: self.words[1])
    target = property(lambda self: self.words[2])

    def __str__(self):
        return f"{self.file}:{self.line}: {show(self.words)}"

    def key(self):
        return show(self.words)

    def optional(self):
        return any(outer[0] == "optional" for outer in self.nest)


def parse(text, file="?"):
    """[(line, statement)]: statements are lists of strings and lists."""
    stack, starts, line, position = [[]], [], 1, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise CilError(f"{file}:{line}: not CIL: {text[position:position + 20]!r}")
        quoted, paren, word = match.groups()
        if paren == "(":
            stack.append([])
            starts.append(line)
        elif paren == ")":
            if len(stack) == 1:
                raise CilError(f"{file}:{line}: a ')' too many")
            done, start = stack.pop(), starts.pop()
            stack[-1].append((start, done) if len(stack) == 1 else done)
        elif quoted or word:
            stack[-1].append(quoted or word)
        line += match.group().count("\n")
        position = match.end()
    if len(stack) != 1:
        raise CilError(f"{file}: a '(' of line {starts[-1]} is not closed")
    return stack[0]


def show(node):
    return node if isinstance(node, str) else "(" + " ".join(show(n) for n in node) + ")"


def atoms(node):
    """Every word in a statement, nested ones too."""
    if isinstance(node, str):
        yield node
    else:
        for part in node:
            yield from atoms(part)


class Module:
    """Several files of one module."""

    def __init__(self, files):
        self.files = [(f.name, parse(f.read_text(), f.name)) for f in files]
        self.sets = {}          # classpermission name -> [(class, [perm])]
        self.members = {}       # attribute -> [name], of plain lists
        self.types, self.attributes = set(), set()
        self.rules = []
        for name, statements in self.files:
            for line, statement in statements:
                self._take(name, line, statement, [])

    def _take(self, file, line, s, nest):
        kind = s[0]
        if kind in NESTS:
            inner = s[2:] if kind in ("optional", "booleanif") else s[1:]
            for part in inner:
                if isinstance(part, list) and part:
                    self._take(file, line, part, [*nest, s])
        elif kind in RULES:
            self.rules.append(Rule(file, line, s, nest))
        elif kind == "type":
            self.types.add(s[1])
        elif kind == "typeattribute":
            self.attributes.add(s[1])
        elif kind == "typeattributeset":
            words = s[2]
            if isinstance(words, list) and words[0] not in ("and", "or", "not", "xor", "all"):
                self.members.setdefault(s[1], []).extend(words)
        elif kind == "classpermissionset":
            self.sets.setdefault(s[1], []).append((s[2][0], s[2][1]))
        elif kind not in PLAIN:
            raise CilError(f"{file}:{line}: a '{kind}' statement: policies/lib/cil.py does not know it, so no twin can be made")

    def permissions(self, rule):
        """[(class, [perm])] of an allow rule."""
        perms = rule.words[3]
        return self.sets[perms] if isinstance(perms, str) else [(perms[0], perms[1])]

    def types_of(self, attribute):
        """The types that the module itself puts into an attribute, attributes in it followed."""
        found = []
        for name in self.members.get(attribute, []):
            found += self.types_of(name) if name in self.attributes else [name]
        return found
