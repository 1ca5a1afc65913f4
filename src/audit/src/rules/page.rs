//! docs/audit-rules.md, from the rules themselves: a test fails if the page is not what this writes.

use std::fmt::Write;

use crate::rule::{Initial, Rule};
use crate::subject::Kind;

const HEAD: &str = include_str!("page-head.md");

/// The page.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    let mut layer = "";
    for rule in super::all() {
        let group = rule.id.split('.').next().unwrap_or_default();
        if group != layer {
            layer = group;
            let _ = writeln!(out, "\n## {group}");
        }
        one(&mut out, rule);
    }
    out
}

fn one(out: &mut String, rule: &Rule) {
    let kinds: Vec<&str> = rule.kinds.iter().map(|kind| word(*kind)).collect();
    let _ = writeln!(out, "\n### {}", rule.id);
    let _ = writeln!(out, "{}. Severity {}; judges {}.", capital(rule.title), rule.severity.word(), kinds.join(", "));
    let _ = writeln!(out, "\n- Threat: {}.", rule.threat);
    let _ = writeln!(out, "- What to do: {}.", rule.remedy);
    for parameter in rule.parameters {
        let default = match parameter.default {
            Initial::Words(words) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                format!("[{}]", quoted.join(", "))
            }
            Initial::Number(number) => number.to_string(),
            Initial::Word(word) => format!("\"{word}\""),
        };
        let _ = writeln!(out, "- `{} = {default}`: {}.", parameter.name, parameter.what);
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Plan => "plans",
        Kind::Policy => "policies",
        Kind::Vm => "live VMs",
        Kind::Process => "foreign processes",
        Kind::Host => "hosts",
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `CASEMATE_ACCEPT=1 cargo test -p casemate-audit page` writes it anew.
    #[test]
    fn the_page_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/audit-rules.md");
        let now = page();
        if std::env::var_os("CASEMATE_ACCEPT").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            there == now,
            "docs/audit-rules.md is not current: CASEMATE_ACCEPT=1 cargo test -p casemate-audit page"
        );
    }
}
