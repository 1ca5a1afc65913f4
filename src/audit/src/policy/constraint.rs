//! Constraints, decided without a rule that allows: "would this permission be refused for the level alone".
//!
//! The kernel looks at constraints only for what type enforcement allows (services.c, context_struct_compute_av), and so
//! does libsepol. An auditor also wants to know what would hold if somebody added a rule.

use std::collections::BTreeSet;

use super::cil::{Facts, Form};

/// A level as constraints see it: a sensitivity and a set of categories.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Level {
    pub sensitivity: u32,
    pub categories: BTreeSet<u32>,
}

impl Level {
    /// `s0`, `s0:c1,c5.c9`
    pub fn parse(text: &str) -> Option<Self> {
        let (sensitivity, categories) = text.split_once(':').map_or((text, None), |(s, c)| (s, Some(c)));
        let sensitivity = number(sensitivity, 's')?;
        let mut set = BTreeSet::new();
        for part in categories.into_iter().flat_map(|list| list.split(',')) {
            let (first, last) = part.split_once('.').unwrap_or((part, part));
            let (first, last) = (number(first, 'c')?, number(last, 'c')?);
            // The kernel knows 1024 at most on every policy seen; a range beyond is no level.
            if first > last || last >= 4096 {
                return None;
            }
            set.extend(first..=last);
        }
        Some(Level { sensitivity, categories: set })
    }

    pub fn dominates(&self, other: &Level) -> bool {
        self.sensitivity >= other.sensitivity && self.categories.is_superset(&other.categories)
    }
}

fn number(text: &str, letter: char) -> Option<u32> {
    let digits = text.strip_prefix(letter).filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// One side of a question.
#[derive(Debug, Clone)]
pub struct Party {
    pub user: String,
    pub role: String,
    pub type_: String,
    pub low: Level,
    pub high: Level,
}

impl Party {
    /// From a context; `None` without a level.
    pub fn parse(context: &str) -> Option<Self> {
        let mut fields = context.splitn(4, ':');
        let mut field = || fields.next().map(str::to_owned);
        let (user, role, type_, range) = (field()?, field()?, field()?, field()?);
        let (low, high) = range.split_once('-').unwrap_or((&range, &range));
        Some(Party { user, role, type_, low: Level::parse(low)?, high: Level::parse(high)? })
    }
}

#[derive(Debug, Clone)]
pub enum Expression {
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Not(Box<Expression>),
    /// An operator with its two operands as written: `dom h1 h2`, `eq t1 domain`.
    Test(String, String, Vec<String>),
}

impl Expression {
    pub(super) fn of(form: Form<'_>) -> Option<Self> {
        let mut parts = form.list();
        let operator = parts.next()?.word()?;
        Some(match operator {
            "and" => Expression::And(parts.map(Expression::of).collect::<Option<_>>()?),
            "or" => Expression::Or(parts.map(Expression::of).collect::<Option<_>>()?),
            "not" => Expression::Not(Box::new(Expression::of(parts.next()?)?)),
            _ => {
                let left = parts.next()?.word()?.to_owned();
                let right = parts.next()?.words().into_iter().map(str::to_owned).collect();
                Expression::Test(operator.to_owned(), left, right)
            }
        })
    }

    /// Does the constraint permit what `source` wants of `target`? `None` for an operator that is not known here.
    pub fn holds(&self, facts: &Facts, source: &Party, target: &Party) -> Option<bool> {
        match self {
            // Of an unknown part, only what the known parts decide alone.
            Expression::And(parts) => combine(parts.iter().map(|p| p.holds(facts, source, target)), false),
            Expression::Or(parts) => combine(parts.iter().map(|p| p.holds(facts, source, target)), true),
            Expression::Not(inner) => inner.holds(facts, source, target).map(|held| !held),
            Expression::Test(operator, left, right) => test(facts, source, target, operator, left, right),
        }
    }
}

/// The end of a chain: `decisive` if a part says so, `None` if an unknown part might have.
fn combine(parts: impl Iterator<Item = Option<bool>>, decisive: bool) -> Option<bool> {
    let mut unknown = false;
    for part in parts {
        match part {
            Some(held) if held == decisive => return Some(decisive),
            Some(_) => {}
            None => unknown = true,
        }
    }
    (!unknown).then_some(!decisive)
}

fn test(facts: &Facts, source: &Party, target: &Party, operator: &str, left: &str, right: &[String]) -> Option<bool> {
    let level = |name: &str| match name {
        "l1" => Some(&source.low),
        "h1" => Some(&source.high),
        "l2" => Some(&target.low),
        "h2" => Some(&target.high),
        _ => None,
    };
    let first = right.first()?;
    if let (Some(a), Some(b)) = (level(left), level(first)) {
        return match operator {
            "eq" => Some(a == b),
            "neq" => Some(a != b),
            "dom" => Some(a.dominates(b)),
            "domby" => Some(b.dominates(a)),
            "incomp" => Some(!a.dominates(b) && !b.dominates(a)),
            _ => None,
        };
    }
    let name = |operand: &str| match operand {
        "t1" => Some(&source.type_),
        "t2" => Some(&target.type_),
        "r1" => Some(&source.role),
        "r2" => Some(&target.role),
        "u1" => Some(&source.user),
        "u2" => Some(&target.user),
        _ => None,
    };
    let value = name(left)?;
    let equal = match name(first) {
        Some(other) => value == other,
        None => right.iter().any(|listed| facts.stands_for(listed, value)),
    };
    match operator {
        "eq" => Some(equal),
        "neq" => Some(!equal),
        // Role dominance is of no use in policies of today; what it would say is not guessed.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::cil::Forms;

    fn holds(expression: &str, source: &str, target: &str) -> Option<bool> {
        let facts = Facts::of("(typeattribute mcs) (typeattributeset mcs (vm_t))");
        let form = Forms::of(expression).next().unwrap();
        Expression::of(form).unwrap().holds(&facts, &Party::parse(source).unwrap(), &Party::parse(target).unwrap())
    }

    #[test]
    fn a_foreign_pair_is_refused_and_the_own_is_not() {
        let mcs = "(or (dom h1 h2) (neq t1 mcs))";
        let vm = |level: &str| format!("u:r:vm_t:{level}");
        for (own, object, granted) in [
            ("s0:c1,c2", "s0:c1,c2", true),
            ("s0:c1,c2", "s0:c3,c4", false),
            ("s0:c1,c2", "s0:c1,c3", false),
            ("s0:c1,c2", "s0:c1", true),
            ("s0:c1,c2", "s0", true),
            ("s0:c1.c9", "s0:c4,c5", true),
            ("s0-s0:c1,c2", "s0:c1", true),
        ] {
            let object = format!("u:object_r:file_t:{object}");
            assert_eq!(holds(mcs, &vm(own), &object), Some(granted), "{own} on {object}");
            assert_eq!(holds(mcs, &vm(own).replace("vm_t", "free_t"), &object), Some(true));
        }
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let (a, b) = ("u:r:vm_t:s0", "u:r:vm_t:s0:c1");
        assert_eq!(holds("(dom r1 r2)", a, b), None);
        assert_eq!(holds("(or (dom r1 r2) (eq u1 u2))", a, b), Some(true));
        assert_eq!(holds("(and (dom r1 r2) (neq u1 u2))", a, b), Some(false));
        assert_eq!(holds("(and (eq u1 u2) (incomp l1 h2))", a, b), Some(false));
        assert_eq!(holds("(eq t1 (other_t mcs))", a, b), Some(true));
    }

    #[test]
    fn levels_refuse_what_is_none() {
        for bad in ["", "c1", "s0:", "s0:c2.c1", "s0:c1,,c2", "s0:c99999", "sx", "s0:c1-s0"] {
            assert_eq!(Level::parse(bad), None, "{bad}");
        }
    }
}
