//! What our module forbids for good (`neverallow` in `policies/*.cil`): a kernel's policy does not hold these rules any
//! more, so they are read from the module's own text.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::cil::{Facts, Form, Forms};

/// The files of the module that hold such rules, and those that define the sets in them.
const FILES: [(&str, &str); 3] = [
    ("casemate_neverallow.cil", include_str!("../../../../policies/casemate_neverallow.cil")),
    ("casemate_deny_neverallow.cil", include_str!("../../../../policies/casemate_deny_neverallow.cil")),
    ("casemate_types.cil", include_str!("../../../../policies/casemate_types.cil")),
];

/// Without their comments: the parser is for what libsepol prints, which has none within a form.
static PLAIN: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| {
    let plain = |line: &'static str| line.split(';').next().unwrap_or_default();
    FILES.iter().map(|(file, text)| (*file, text.lines().map(plain).collect::<Vec<_>>().join("\n"))).collect()
});

/// The rule that forbids it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Never {
    pub file: &'static str,
    /// On one line.
    pub rule: String,
}

/// Is this permission forbidden for good? `facts` tell the members of the base policy's attributes; without them only
/// rules count that need none.
pub fn forbids(facts: Option<&Facts>, source: &str, target: &str, class: &str, permission: &str) -> Option<Never> {
    let sets = Sets::read(facts);
    for (file, text) in PLAIN.iter() {
        for form in Forms::of(text) {
            let parts: Vec<Form<'_>> = form.list().collect();
            let [word, from, to, what] = parts[..] else { continue };
            let Some("neverallow") = word.word() else { continue };
            let to_self = to.word() == Some("self");
            let reaches = if to_self { source == target } else { sets.holds(to, target, 0) };
            if sets.holds(from, source, 0) && reaches && covers(what, class, permission) {
                return Some(Never { file, rule: form.text().split_whitespace().collect::<Vec<_>>().join(" ") });
            }
        }
    }
    None
}

/// `(CLASS (PERMISSION...))` or `(CLASS (all))`
fn covers(what: Form<'_>, class: &str, permission: &str) -> bool {
    let mut parts = what.list();
    let named = parts.next().and_then(Form::word);
    named == Some(class) && parts.next().is_some_and(|p| p.words().iter().any(|w| *w == "all" || *w == permission))
}

/// The module's sets of types by name, and the base policy's attributes.
struct Sets<'a> {
    own: BTreeMap<&'a str, Vec<Form<'a>>>,
    facts: Option<&'a Facts>,
}

impl<'a> Sets<'a> {
    fn read(facts: Option<&'a Facts>) -> Self {
        let mut own: BTreeMap<&str, Vec<Form<'_>>> = BTreeMap::new();
        for form in PLAIN.iter().flat_map(|(_, text)| Forms::of(text)) {
            let parts: Vec<Form<'_>> = form.list().collect();
            if let [word, name, set] = parts[..]
                && let (Some("typeattributeset"), Some(name)) = (word.word(), name.word())
            {
                own.entry(name).or_default().push(set);
            }
        }
        Sets { own, facts }
    }

    /// Is this type in the set? A set that is not known holds nothing: no rule is claimed that may not be there.
    fn holds(&self, set: Form<'_>, type_: &str, depth: usize) -> bool {
        if depth > 16 {
            return false;
        }
        let Some(name) = set.word() else { return self.composed(set, type_, depth + 1) };
        name == type_
            || self.own.get(name).is_some_and(|sets| sets.iter().any(|set| self.holds(*set, type_, depth + 1)))
            || self.facts.is_some_and(|facts| facts.stands_for(name, type_))
    }

    /// `(all)`, `(not S)`, `(and S S)`, `(or S S)`, or a list of names.
    fn composed(&self, set: Form<'_>, type_: &str, depth: usize) -> bool {
        let parts: Vec<Form<'_>> = set.list().collect();
        let Some((head, rest)) = parts.split_first() else { return false };
        match (head.word(), rest) {
            (Some("all"), []) => true,
            (Some("not"), [one]) => self.is_known(*one, depth) && !self.holds(*one, type_, depth),
            (Some("and"), [a, b]) => self.holds(*a, type_, depth) && self.holds(*b, type_, depth),
            (Some("or"), [a, b]) => self.holds(*a, type_, depth) || self.holds(*b, type_, depth),
            _ => parts.iter().any(|part| self.holds(*part, type_, depth)),
        }
    }

    /// May "not in it" be said? Only where every name in it is one of ours, or the base policy can be asked.
    fn is_known(&self, set: Form<'_>, depth: usize) -> bool {
        if self.facts.is_some() || depth > 16 {
            return self.facts.is_some();
        }
        match set.word() {
            Some(name) => {
                name.ends_with("_t")
                    || self.own.get(name).is_some_and(|s| s.iter().all(|s| self.is_known(*s, depth + 1)))
            }
            None => set
                .list()
                .filter(|f| !matches!(f.word(), Some("and" | "or" | "not" | "all")))
                .all(|f| self.is_known(f, depth + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(source: &str, target: &str, class: &str, permission: &str) -> Option<&'static str> {
        forbids(None, source, target, class, permission).map(|never| never.file)
    }

    #[test]
    fn what_the_module_forbids_is_found_in_its_own_text() {
        let runner = "casemate_runner_t";
        assert_eq!(rule(runner, "etc_t", "file", "relabelto"), Some("casemate_neverallow.cil"));
        assert_eq!(rule(runner, "shadow_t", "file", "open"), Some("casemate_deny_neverallow.cil"));
        assert_eq!(rule(runner, runner, "capability", "sys_admin"), Some("casemate_neverallow.cil"));
        assert_eq!(rule(runner, "kernel_t", "capability", "sys_admin"), None, "the rule is about itself");
        assert_eq!(rule(runner, "kvm_device_t", "chr_file", "open"), Some("casemate_deny_neverallow.cil"));
        assert_eq!(rule("casemate_jailer_t", "x_t", "security", "load_policy"), Some("casemate_neverallow.cil"));
        let text = forbids(None, runner, "etc_t", "process", "setexec").unwrap().rule;
        assert!(text.starts_with("(neverallow casemate_runner_t casemate_all_types (process") && !text.contains('\n'));
    }

    #[test]
    fn what_it_does_not_forbid_is_not_claimed() {
        assert_eq!(rule("casemate_runner_t", "casemate_image_t", "file", "write"), None, "the exception of a set");
        assert_eq!(rule("casemate_runner_t", "casemate_image_t", "file", "read"), None);
        assert_eq!(rule("casemate_jailer_t", "var_t", "file", "read"), None);
        assert_eq!(rule("unconfined_t", "etc_t", "file", "relabelto"), None);
        // Who may relabel what hangs on a set that sites extend: without the policy it is not known.
        assert_eq!(rule("casemate_jailer_t", "user_home_t", "file", "relabelfrom"), None);
    }

    #[test]
    fn the_base_policys_attributes_decide_where_they_are_known() {
        let mut facts = Facts::default();
        facts.attributes.insert("casemate_relabelable".into(), ["virt_image_t".to_owned()].into());
        let ask = |target| forbids(Some(&facts), "casemate_jailer_t", target, "file", "relabelfrom").is_some();
        assert!(ask("shadow_t"));
        assert!(!ask("virt_image_t"));
    }
}
