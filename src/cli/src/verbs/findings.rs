//! Findings of the attestations, put together where they say the same: of several threads, of several things with one
//! value, by the runner and by the warden.

use casemate_wire::record::Finding;

/// Findings that agree.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    things: Vec<&'a str>,
    threads: Vec<&'a str>,
    /// How many said it: two are the runner from inside and the warden from outside.
    said: usize,
    pub seen: &'a str,
    pub expected: &'a str,
    pub ok: bool,
}

impl Line<'_> {
    /// What was looked at.
    pub fn what(&self) -> String {
        let mut text = self.things.join(", ");
        match self.threads.as_slice() {
            [] => {}
            [one] => text.push_str(&format!(" of thread {one}")),
            many => text.push_str(&format!(" of threads {}", many.join(", "))),
        }
        if self.said > 1 {
            text.push_str(" (from inside and outside)");
        }
        text
    }
}

/// What the findings of one layer say, in their order.
pub fn lines<'a>(findings: &[&'a Finding]) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for finding in findings {
        let (thing, thread) = match finding.what.split_once(" of thread ") {
            Some((thing, thread)) => (thing, Some(thread)),
            None => (finding.what.as_str(), None),
        };
        let same = lines.iter_mut().find(|l| {
            l.things == [thing]
                && (l.seen, l.ok) == (&finding.seen, finding.ok)
                && l.threads.is_empty() == thread.is_none()
        });
        match (same, thread) {
            (Some(line), Some(thread)) if !line.threads.contains(&thread) => line.threads.push(thread),
            (Some(line), _) => line.said += 1,
            (None, _) => lines.push(Line {
                things: vec![thing],
                threads: thread.into_iter().collect(),
                said: 1,
                seen: &finding.seen,
                expected: &finding.expected,
                ok: finding.ok,
            }),
        }
    }
    lines.into_iter().fold(Vec::new(), joined)
}

/// Adds a line, or its thing to a line that says the same of another thing.
fn joined<'a>(mut lines: Vec<Line<'a>>, line: Line<'a>) -> Vec<Line<'a>> {
    let same = lines.iter_mut().find(|l| {
        l.ok && line.ok
            && l.seen == line.seen
            && l.threads == line.threads
            && l.said == line.said
            && l.expected == line.expected
    });
    match same {
        Some(earlier) => earlier.things.extend(line.things),
        None => lines.push(line),
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(what: &str, seen: &str, ok: bool) -> Finding {
        Finding { layer: "x".into(), what: what.into(), expected: "e".into(), seen: seen.into(), ok }
    }

    #[test]
    fn what_agrees_becomes_one_line_and_what_does_not_stays() {
        let all = [
            finding("CapEff", "0", true),
            finding("CapPrm", "0", true),
            finding("CapEff of thread io", "0", true),
            finding("CapEff of thread main", "0", true),
            finding("CapPrm of thread io", "0", true),
            finding("CapPrm of thread main", "3", false),
            finding("limit core", "0 0", true),
            finding("limit core", "0 0", true),
        ];
        let refs: Vec<&Finding> = all.iter().collect();
        let told: Vec<String> = lines(&refs).iter().map(|l| format!("{} {}: {}", l.ok, l.what(), l.seen)).collect();
        assert_eq!(
            told,
            [
                "true CapEff, CapPrm: 0",
                "true CapEff of threads io, main: 0",
                "true CapPrm of thread io: 0",
                "false CapPrm of thread main: 3",
                "true limit core (from inside and outside): 0 0",
            ]
        );
    }
}
