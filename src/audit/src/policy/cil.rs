//! The facts of a policy that libsepol answers no question about: names, attributes, rules, constraints, booleans.
//!
//! Read from the CIL that libsepol prints of a binary policy (kernel_to_cil.c), not from CIL that a person wrote: every
//! statement is whole, attributes are listed type by type, nothing is nested but conditional blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::constraint::Expression;

/// `(a (b c))`: a word, or a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form<'a>(&'a str);

impl<'a> Form<'a> {
    pub fn word(self) -> Option<&'a str> {
        (!self.0.starts_with('(')).then_some(self.0)
    }

    /// The members of a list; nothing for a word.
    pub fn list(self) -> Forms<'a> {
        let inner = self.0.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
        Forms(inner.unwrap_or_default())
    }

    /// The words of a list, or the one word that it is.
    pub fn words(self) -> Vec<&'a str> {
        match self.word() {
            Some(word) => vec![word],
            None => self.list().filter_map(Form::word).collect(),
        }
    }

    pub fn text(self) -> &'a str {
        self.0
    }
}

/// The forms of a text, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Forms<'a>(&'a str);

impl<'a> Forms<'a> {
    pub fn of(text: &'a str) -> Self {
        Forms(text)
    }
}

impl<'a> Iterator for Forms<'a> {
    type Item = Form<'a>;

    fn next(&mut self) -> Option<Form<'a>> {
        let text = loop {
            self.0 = self.0.trim_start_matches([' ', '\n', '\t', ')']);
            match self.0.strip_prefix(';') {
                Some(comment) => self.0 = comment.split_once('\n').map_or("", |(_, rest)| rest),
                None => break self.0,
            }
        };
        let bytes = text.as_bytes();
        let first = *bytes.first()?;
        let (mut depth, mut quoted) = (0usize, false);
        let mut end = bytes.len();
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'(' => depth += 1,
                b')' if depth <= 1 => {
                    // The end of this list, or of the list around this word.
                    end = at + usize::from(depth == 1);
                    break;
                }
                b')' => depth -= 1,
                b' ' | b'\n' | b'\t' if first != b'(' => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        let (form, rest) = text.split_at(end);
        self.0 = rest;
        Some(Form(form))
    }
}

/// `(allow SOURCE TARGET (CLASS (PERMISSION...)))`, names being types or attributes; the target may be `self`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub source: String,
    pub target: String,
    pub class: String,
    pub permissions: Vec<String>,
}

/// Rules that hold while an expression of booleans does.
#[derive(Debug, Clone)]
pub struct Conditional {
    /// As printed, `(and a (not b))`.
    pub expression: String,
    pub booleans: BTreeSet<String>,
    pub rules: Vec<Rule>,
}

/// A constraint on some classes' permissions.
#[derive(Debug, Clone)]
pub struct Constraint {
    pub class: String,
    pub permissions: BTreeSet<String>,
    pub expression: Expression,
    /// As printed.
    pub text: String,
}

/// `(typetransition SOURCE TARGET process RESULT)`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transition {
    pub source: String,
    pub program: String,
    pub result: String,
}

#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub types: BTreeSet<String>,
    pub attributes: BTreeMap<String, BTreeSet<String>>,
    /// Permissions of each class, those of its common included.
    pub classes: BTreeMap<String, Vec<String>>,
    pub booleans: BTreeMap<String, bool>,
    pub rules: Vec<Rule>,
    pub conditionals: Vec<Conditional>,
    pub constraints: Vec<Constraint>,
    pub transitions: Vec<Transition>,
    pub permissive: BTreeSet<String>,
    /// Types that another bounds: they never may more than that one.
    pub bounded: BTreeSet<String>,
    /// Roles that may have a type.
    pub roles: BTreeMap<String, BTreeSet<String>>,
    /// Roles that a user may have.
    pub users: BTreeMap<String, BTreeSet<String>>,
    pub capabilities: BTreeSet<String>,
    /// The highest category, N of cN.
    pub last_category: Option<u32>,
    /// What happens to classes that the kernel has and the policy has not: `allow`, `deny` or `reject`.
    pub unknown: String,
}

impl Facts {
    pub(super) fn of(text: &str) -> Self {
        let mut facts = Facts::default();
        let (mut commons, mut of_common) = (BTreeMap::new(), Vec::new());
        for form in Forms::of(text) {
            let mut parts = form.list();
            let Some(head) = parts.next().and_then(Form::word) else { continue };
            let mut word = || parts.next().and_then(Form::word).map(str::to_owned);
            match head {
                "type" => facts.types.extend(word()),
                "typeattribute" => drop(word().map(|name| facts.attributes.entry(name).or_default())),
                "typebounds" => facts.bounded.extend(word().and_then(|_| word())),
                "typepermissive" => facts.permissive.extend(word()),
                "category" => {
                    let number = word().and_then(|name| name.strip_prefix('c')?.parse().ok());
                    facts.last_category = facts.last_category.max(number);
                }
                "policycap" => facts.capabilities.extend(word()),
                "handleunknown" => facts.unknown = word().unwrap_or_default(),
                "boolean" => drop(word().zip(word()).map(|(name, on)| facts.booleans.insert(name, on == "true"))),
                "classcommon" => of_common.extend(word().zip(word())),
                "roletype" => pair(&mut facts.roles, word(), word(), true),
                "userrole" => pair(&mut facts.users, word(), word(), false),
                "class" => drop(word().map(|name| facts.classes.insert(name, owned(parts.next())))),
                "common" => drop(word().map(|name| commons.insert(name, owned(parts.next())))),
                "typeattributeset" => {
                    if let Some(name) = word() {
                        facts.attributes.entry(name).or_default().extend(owned(parts.next()));
                    }
                }
                "allow" => facts.rules.extend(rule(parts)),
                "constrain" | "mlsconstrain" => facts.constraints.extend(constraint(parts)),
                "typetransition" => facts.transitions.extend(transition(parts)),
                "booleanif" => facts.conditionals.extend(conditional(parts)),
                _ => {}
            }
        }
        for (class, common) in of_common {
            let inherited = commons.get(&common).cloned().unwrap_or_default();
            facts.classes.entry(class).or_default().extend(inherited);
        }
        facts
    }

    /// The types that a name stands for: those of an attribute, or the type itself.
    pub fn types_of<'a>(&'a self, name: &'a str) -> Box<dyn Iterator<Item = &'a str> + 'a> {
        match self.attributes.get(name) {
            Some(types) => Box::new(types.iter().map(String::as_str)),
            None => Box::new(std::iter::once(name)),
        }
    }

    /// Does a name, of a type or an attribute, stand for this type?
    pub fn stands_for(&self, name: &str, type_: &str) -> bool {
        name == type_ || self.attributes.get(name).is_some_and(|types| types.contains(type_))
    }

    /// The types that a rule's target stands for when `source` acts.
    pub fn targets<'a>(&'a self, rule: &'a Rule, source: &'a str) -> Box<dyn Iterator<Item = &'a str> + 'a> {
        if rule.target == "self" { Box::new(std::iter::once(source)) } else { self.types_of(&rule.target) }
    }

    /// Every allow rule, conditional ones that hold now or not among them; `seinfo` counts the same.
    pub fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().chain(self.conditionals.iter().flat_map(|block| &block.rules))
    }

    /// Those whose source is this type.
    pub fn rules_from<'a>(&'a self, type_: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.all_rules().filter(move |rule| self.stands_for(&rule.source, type_))
    }
}

fn owned(form: Option<Form<'_>>) -> Vec<String> {
    form.map(|form| form.words().into_iter().map(str::to_owned).collect()).unwrap_or_default()
}

/// Adds `key -> value`, with the two swapped where the statement names them the other way round.
fn pair(map: &mut BTreeMap<String, BTreeSet<String>>, a: Option<String>, b: Option<String>, swapped: bool) {
    if let Some((a, b)) = a.zip(b) {
        let (key, value) = if swapped { (b, a) } else { (a, b) };
        map.entry(key).or_default().insert(value);
    }
}

/// `CLASS (PERMISSION...)` in a form of two.
fn class_of(form: Form<'_>) -> Option<(String, Vec<String>)> {
    let mut parts = form.list();
    let class = parts.next()?.word()?.to_owned();
    Some((class, owned(parts.next())))
}

fn rule(mut parts: Forms<'_>) -> Option<Rule> {
    let source = parts.next()?.word()?.to_owned();
    let target = parts.next()?.word()?.to_owned();
    let (class, permissions) = class_of(parts.next()?)?;
    Some(Rule { source, target, class, permissions })
}

fn constraint(mut parts: Forms<'_>) -> Option<Constraint> {
    let (class, permissions) = class_of(parts.next()?)?;
    let expression = parts.next()?;
    Some(Constraint {
        class,
        permissions: permissions.into_iter().collect(),
        expression: Expression::of(expression)?,
        text: expression.text().to_owned(),
    })
}

fn transition(mut parts: Forms<'_>) -> Option<Transition> {
    let source = parts.next()?.word()?.to_owned();
    let program = parts.next()?.word()?.to_owned();
    if parts.next()?.word()? != "process" {
        return None;
    }
    Some(Transition { source, program, result: parts.next()?.word()?.to_owned() })
}

fn conditional(mut parts: Forms<'_>) -> Option<Conditional> {
    let expression = parts.next()?;
    let mut booleans = BTreeSet::new();
    collect_booleans(expression, &mut booleans);
    let mut rules = Vec::new();
    for branch in parts {
        let inner = branch.list().skip(1).filter_map(|form| {
            let mut parts = form.list();
            (parts.next()?.word()? == "allow").then(|| rule(parts)).flatten()
        });
        rules.extend(inner);
    }
    Some(Conditional { expression: expression.text().to_owned(), booleans, rules })
}

fn collect_booleans(form: Form<'_>, into: &mut BTreeSet<String>) {
    match form.word() {
        Some("and" | "or" | "not" | "xor" | "eq" | "neq") => {}
        Some(name) => drop(into.insert(name.to_owned())),
        None => form.list().for_each(|part| collect_booleans(part, into)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        (handleunknown allow)
        (common file (ioctl read))
        (class file (entrypoint))
        (classcommon file file)
        (class process (fork ptrace))
        (type a_t) (type b_t)
        (typeattribute domain)
        (typeattributeset domain (a_t b_t))
        (boolean nfs true)
        (typepermissive b_t)
        (typebounds a_t b_t)
        (roletype system_r a_t)
        (userrole system_u system_r)
        (allow domain self (process (fork)))
        (allow a_t b_t (file (read)))
        (genfscon proc "/a (b) c" any (system_u object_r a_t ((s0) (s0))))
        (typetransition a_t b_t process c_t)
        (typetransition a_t b_t file d_t)
        (mlsconstrain (file (read write)) (or (dom h1 h2) (neq t1 domain)))
        (booleanif (and nfs (not smb))
            (true
                (allow a_t c_t (file (read)))
            )
            (false
                (allow a_t d_t (file (ioctl)))
            )
        )
        (allow b_t a_t (process (ptrace)))
    "#;

    #[test]
    fn the_statements_that_matter_are_read() {
        let facts = Facts::of(TEXT);
        assert_eq!(facts.unknown, "allow");
        assert_eq!(facts.classes["file"], ["entrypoint", "ioctl", "read"]);
        assert_eq!(facts.types.len(), 2);
        assert!(facts.stands_for("domain", "a_t") && !facts.stands_for("domain", "c_t"));
        assert_eq!(facts.rules.len(), 3, "a path with parentheses does not swallow what follows");
        assert_eq!(facts.targets(&facts.rules[0], "a_t").collect::<Vec<_>>(), ["a_t"]);
        assert_eq!(facts.roles["a_t"].iter().next().unwrap(), "system_r");
        assert_eq!(facts.transitions.len(), 1);
        assert_eq!(facts.permissive.len(), 1);
        assert_eq!(facts.bounded.iter().collect::<Vec<_>>(), ["b_t"]);
        assert_eq!(facts.all_rules().count(), 5);
        let block = &facts.conditionals[0];
        assert_eq!(block.booleans.iter().collect::<Vec<_>>(), ["nfs", "smb"]);
        assert_eq!(block.rules.len(), 2);
        assert_eq!(facts.rules_from("a_t").count(), 4);
        assert!(facts.booleans["nfs"]);
    }

    #[test]
    fn broken_text_ends() {
        for text in ["(", ")", "(allow", "\"", "(allow a", "((((", "(type \"a)", "; only a comment"] {
            let _ = Facts::of(text);
        }
    }
}
