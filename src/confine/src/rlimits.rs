//! Resource limits, soft and hard alike, named as the plan names them.

use crate::confined::{Finding, held};
use crate::{Confined, Error, Result};
use casemate_plan::{Layer, Rlimit};
use casemate_sys::rlimit::{self, Resource};

const LAYER: Layer = Layer::Rlimits;

/// Plan name, kernel resource, and the first words of its line in /proc/PID/limits.
const NAMES: [(&str, Resource, &str); 9] = [
    ("as", Resource::As, "Max address space"),
    ("core", Resource::Core, "Max core file size"),
    ("fsize", Resource::Fsize, "Max file size"),
    ("locks", Resource::Locks, "Max file locks"),
    ("memlock", Resource::Memlock, "Max locked memory"),
    ("msgqueue", Resource::Msgqueue, "Max msgqueue size"),
    ("nofile", Resource::Nofile, "Max open files"),
    ("nproc", Resource::Nproc, "Max processes"),
    ("sigpending", Resource::Sigpending, "Max pending signals"),
];

fn named(name: &str) -> Option<(Resource, &'static str)> {
    NAMES.iter().find(|(known, ..)| *known == name).map(|(_, resource, line)| (*resource, *line))
}

/// Sets every limit and reads it back.
pub fn apply(limits: &[Rlimit]) -> Result<Confined> {
    for limit in limits {
        let Some((resource, _)) = named(&limit.name) else {
            return Err(Error::Refused { layer: LAYER, why: format!("no limit is named {}", limit.name) });
        };
        rlimit::set(resource, limit.value).map_err(Error::call(LAYER))?;
    }
    held(LAYER, attest(limits))
}

/// The process's own view; no /proc.
pub fn attest(limits: &[Rlimit]) -> Vec<Finding> {
    let shown = |value: Option<u64>| value.map_or("unlimited".to_owned(), |value| value.to_string());
    let finding = |limit: &Rlimit| {
        let want = format!("{0} {0}", limit.value);
        let seen = named(&limit.name).map(|(resource, _)| rlimit::get(resource));
        let seen = seen.map_or("unknown".to_owned(), |(soft, hard)| format!("{} {}", shown(soft), shown(hard)));
        Finding::equal(LAYER, format!("limit {}", limit.name), want, seen)
    };
    limits.iter().map(finding).collect()
}

/// The same from the text of /proc/PID/limits.
pub(crate) fn attest_text(limits: &[Rlimit], text: &str) -> Vec<Finding> {
    let seen = |name: &str| -> Option<String> {
        let (_, label) = named(name)?;
        let line = text.lines().find(|line| line.starts_with(label))?;
        let values: Vec<&str> = line.strip_prefix(label)?.split_whitespace().take(2).collect();
        Some(values.join(" "))
    };
    let finding = |limit: &Rlimit| {
        let want = format!("{0} {0}", limit.value);
        let seen = seen(&limit.name).unwrap_or("unknown".into());
        Finding::equal(LAYER, format!("limit {}", limit.name), want, seen)
    };
    limits.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, value: u64) -> Rlimit {
        Rlimit { name: name.into(), value }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(matches!(apply(&[limit("nope", 1)]), Err(Error::Refused { .. })));
    }

    #[test]
    fn the_text_of_proc_is_understood() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            512                  512                  files     \n\
                    Max core file size        0                    unlimited            bytes     \n";
        let findings = attest_text(&[limit("nofile", 512), limit("core", 0)], text);
        assert!(findings[0].ok);
        assert!(!findings[1].ok, "a hard limit that is left open is found");
    }
}
