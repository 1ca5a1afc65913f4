//! The findings: failed ones in full, what could not be looked at, what passed; and all of them layer by layer.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::tally::{Entry, SEVERITIES, Tally, checks, rank, verdict_word};
use super::text::{Text, count, number, prose};
use super::{icon, subject, tables};
use crate::report::Report;
use crate::rule::{Finding, Verdict};

/// Rows of one rule that are shown before the rest is folded.
const ROWS: usize = 12;

pub fn failed(report: &Report, tally: &Tally) -> Option<Markup> {
    let present: Vec<_> = SEVERITIES.into_iter().filter(|s| tally.failures(*s) > 0).collect();
    Some(html! {
        @if tally.failed.is_empty() {
            p.empty { @if report.findings.is_empty() { "No check was made." } @else { "No check failed." } }
        }
        @if present.len() > 1 {
            fieldset.filter {
                legend { "Show" }
                @for severity in present {
                    label.(severity.word()) {
                        input type="checkbox" checked id={ "show-" (severity.word()) };
                        (icon(severity.word())) (severity.word()) " " (number(tally.failures(severity)))
                    }
                }
            }
        }
        @for entry in &tally.failed { (card(report, entry, 3)) }
    })
}

fn card(report: &Report, entry: &Entry, level: u8) -> Markup {
    let rule = entry.rule();
    let title = html! { (Text(&rule.title)) };
    html! {
        article.finding.(rule.severity.word()) {
            header {
                span.badge.(rule.severity.word()) { (icon(rule.severity.word())) (rule.severity.word()) }
                @if level == 3 { h3 { (title) } } @else { h4 { (title) } }
                span.meta { code.rule { (Text(&rule.rule)) } span.layer { (Text(&rule.layer)) } }
            }
            dl.why {
                div { dt { "Threat" } dd { (prose(&rule.threat)) } }
                div.remedy { dt { "Remedy" } dd { (prose(&rule.remedy)) } }
            }
            (rows(report, &entry.findings))
        }
    }
}

fn rows(report: &Report, findings: &[&Finding]) -> Markup {
    let (shown, folded) = findings.split_at(if findings.len() > ROWS + 3 { ROWS } else { findings.len() });
    html! {
        (table(report, shown))
        @if !folded.is_empty() {
            details { summary { (number(folded.len())) " more" } (table(report, folded)) }
        }
    }
}

fn table(report: &Report, findings: &[&Finding]) -> Markup {
    let caption = findings.first().map(|f| html! { "Evidence for " (Text(&f.rule)) });
    html! {
        div.scroll {
            table.evidence.stack {
                caption.unseen { (caption.unwrap_or_default()) }
                thead { tr { th scope="col" { "Where" } th scope="col" { "Expected" } th scope="col" { "Seen" } } }
                tbody { @for finding in findings {
                    tr {
                        th scope="row" data-l="Where" { (subject::link(report, finding.kind, &finding.subject)) span.what { (Text(&finding.check.what)) } }
                        td.code data-l="Expected" { (Text(&finding.check.expected)) }
                        td.code.seen data-l="Seen" { (Text(&finding.check.seen)) }
                    }
                } }
            }
        }
    }
}

pub fn unknown(report: &Report, tally: &Tally) -> Option<Markup> {
    (!tally.unknown.is_empty()).then(|| {
        html! {
            p.lead { "These checks could not be made. They may hide failures of the severity that stands beside them." }
            @for entry in &tally.unknown { (card(report, entry, 3)) }
        }
    })
}

pub fn passed(report: &Report, tally: &Tally) -> Option<Markup> {
    if tally.passed.is_empty() {
        return None;
    }
    let mut by_layer: BTreeMap<_, Vec<&Entry>> = BTreeMap::new();
    for entry in &tally.passed {
        by_layer.entry(rank(&entry.rule().layer)).or_default().push(entry);
    }
    Some(html! {
        p.lead { (count(checks(&tally.passed), "check")) " of " (count(tally.passed.len(), "rule")) " passed." }
        @for ((_, layer), entries) in &by_layer {
            details.part {
                summary { span { strong { (Text(layer)) } } span.n { (number(entries.iter().map(|e| e.findings.len()).sum())) } }
                @for entry in entries {
                    @let rule = entry.rule();
                    details.part {
                        summary { (icon("pass")) span { (Text(&rule.title)) " " code.rule { (Text(&rule.rule)) } } span.n { (number(entry.findings.len())) } }
                        dl.why { div { dt { "Threat" } dd { (prose(&rule.threat)) } } }
                        (rows(report, &entry.findings))
                    }
                }
            }
        }
    })
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    noted: usize,
    unknown: usize,
    inapplicable: usize,
}

/// Subjects by layers: how many checks failed, were not possible, passed.
pub fn layers(report: &Report) -> Option<Markup> {
    let mut counts: BTreeMap<_, BTreeMap<(usize, &str), Counts>> = BTreeMap::new();
    let mut order = Vec::new();
    for finding in &report.findings {
        let subject = (finding.kind, finding.subject.as_str());
        if !counts.contains_key(&subject) {
            order.push(subject);
        }
        let counts = counts.entry(subject).or_default().entry(rank(&finding.layer)).or_default();
        match finding.check.verdict {
            Verdict::Pass => counts.passed += 1,
            Verdict::Fail if finding.is_note() => counts.noted += 1,
            Verdict::Fail => counts.failed += 1,
            Verdict::Unknown => counts.unknown += 1,
            Verdict::Inapplicable => counts.inapplicable += 1,
        }
    }
    let layers: BTreeSet<_> = counts.values().flat_map(|row| row.keys().copied()).collect();
    (!order.is_empty()).then(|| {
        html! {
            div.scroll.tall tabindex="0" role="region" aria-label="Checks by subject and layer" {
                table.layers {
                    caption { "Checks by subject and layer" span.fail { (icon("fail")) " failed" } span.unknown { (icon("unknown")) " unknown" } span.info { (icon("info")) " for information" } span.pass { (icon("pass")) " passed" } span.inapplicable { (icon("inapplicable")) " not applicable" } }
                    thead { tr { th scope="col" { "Subject" } @for (_, layer) in &layers { th scope="col" { (Text(layer)) } } } }
                    tbody { @for subject in &order {
                        tr {
                            th scope="row" { (subject::link(report, subject.0, subject.1)) }
                            @for layer in &layers { (cell(counts[subject].get(layer))) }
                        }
                    } }
                }
            }
        }
    })
}

fn cell(counts: Option<&Counts>) -> Markup {
    let Some(counts) = counts else {
        return html! { td { span.unseen { "no check" } } };
    };
    let verdict = match counts {
        Counts { failed: 1.., .. } => Verdict::Fail,
        Counts { unknown: 1.., .. } => Verdict::Unknown,
        Counts { passed: 0, noted: 0, .. } => Verdict::Inapplicable,
        _ => Verdict::Pass,
    };
    let parts = [
        ("fail", "failed", counts.failed),
        ("unknown", "unknown", counts.unknown),
        ("info", "for information", counts.noted),
        ("pass", "passed", counts.passed),
        ("inapplicable", "not applicable", counts.inapplicable),
    ];
    html! {
        td.(verdict_word(verdict)) {
            @for (symbol, said, n) in parts { @if n > 0 {
                span.(symbol) { (icon(symbol)) (number(n)) span.unseen { " " (said) } }
            } }
        }
    }
}

/// Where there was nothing to look at, with the reason.
pub fn inapplicable(report: &Report, tally: &Tally) -> Option<Markup> {
    (!tally.inapplicable.is_empty()).then(|| {
        html! {
            p.lead { "There was nothing that these rules could look at." }
            @for entry in &tally.inapplicable {
                @let rule = entry.rule();
                details.part {
                    summary { (icon("inapplicable")) span { (Text(&rule.title)) " " code.rule { (Text(&rule.rule)) } } span.n { (number(entry.findings.len())) } }
                    (rows(report, &entry.findings))
                }
            }
        }
    })
}

/// What the profile left out: a report without it would be taken for a whole one.
pub fn waived(report: &Report) -> Option<Markup> {
    (!report.waived.is_empty()).then(|| {
        html! {
            p.lead { "The profile " code { (Text(&report.profile)) } " switches these rules off. They were not asked." }
            (tables::table("Rules that were not asked", &["Rule", "Reason"], report.waived.iter().map(|waived| {
                vec![html! { code { (Text(&waived.rule)) } }, html! { (Text(&waived.reason)) }]
            })))
        }
    })
}
