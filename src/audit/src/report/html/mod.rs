//! The report as one HTML page that needs nothing else: no script, no network, no font of its own.
//!
//! Everything in a [`Report`] may have been written by an attacker (names of processes, paths, kernel files that a guest
//! moved). maud escapes each value; [`text::Text`] shows what deceives the eye; identifiers on the page are numbers, never
//! names; and a Content-Security-Policy with the digest of our one style sheet forbids whatever would get past that.

mod findings;
mod groups;
mod host;
mod matrix;
mod process;
mod seccomp;
mod subject;
mod tables;
mod tally;
mod text;

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use super::Report;
use crate::rule::Severity;
use crate::subject::Kind;
use seccomp::Shelf;
use tally::{Outcome, SEVERITIES, Tally, checks};
use text::{Text, count, number, plain};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub fn page(report: &Report) -> String {
    let tally = Tally::new(report);
    let shelf = Shelf::new(report);
    let sections = [
        ("findings", "Findings", findings::failed(report, &tally)),
        ("waived", "Switched off", findings::waived(report)),
        ("layers", "Layer by layer", findings::layers(report)),
        ("matrix", "Isolation between VMs", matrix::section(report)),
        ("unknown", "Not looked at", findings::unknown(report, &tally)),
        ("host", "Host", host::section(report)),
        ("subjects", "Subjects", subject::section(report, &shelf)),
        ("seccomp", "System calls", shelf.section(report)),
        ("passed", "Passed checks", findings::passed(report, &tally)),
        ("inapplicable", "Not applicable", findings::inapplicable(report, &tally)),
        ("about", "How to read this", Some(about(report))),
    ];
    let sections: Vec<_> = sections.into_iter().filter_map(|(id, name, body)| Some((id, name, body?))).collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy());
                meta name="referrer" content="no-referrer";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Casemate audit of " (plain(&report.host)) ": " (headline(&tally)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#findings" { "Skip to the findings" }
                (sprite())
                (top(report))
                (verdict(report, &tally))
                div.page {
                    nav aria-label="Sections" {
                        ul { @for (id, name, _) in &sections { li { a href={ "#" (id) } { (name) } } } }
                    }
                    main {
                        @for (id, name, body) in &sections {
                            section id=(id) aria-labelledby={ "h-" (id) } {
                                h2 id={ "h-" (id) } { (name) }
                                (body)
                            }
                        }
                    }
                }
                footer { "Made by casemate " (env!("CARGO_PKG_VERSION")) ", report format " (report.version) ". This page holds no script and loads nothing." }
            }
        }
    };
    page.into_string()
}

/// Only our style sheet, known by its digest, has an effect on this page.
fn policy() -> String {
    let digest = STANDARD.encode(Sha256::digest(STYLE));
    format!("default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")
}

fn top(report: &Report) -> Markup {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(report.time));
    // humantime ends with the year 9999.
    let time = time.filter(|_| report.time < 253_402_300_800).map(|t| humantime::format_rfc3339_seconds(t).to_string());
    html! {
        header.top {
            div.brand { (icon("casemate")) span { "Casemate " strong { "audit" } } }
            dl {
                div { dt { "Host" } dd.code { (Text(&report.host)) } }
                div { dt { "Time" } dd { @match time {
                    Some(time) => time datetime=(time) { (time.replace('T', " ").replace('Z', " UTC")) },
                    None => { (report.time) " s after 1970" }
                } } }
                div { dt { "Profile" } dd.code { (Text(&report.profile)) } }
                div { dt { "Looked at" } dd { (subjects(report)) } }
            }
        }
    }
}

/// `1 host, 3 VMs`.
fn subjects(report: &Report) -> Markup {
    let of = |kind| report.subjects.iter().filter(|s| s.kind == kind).count();
    let kinds = [
        (Kind::Host, "host"),
        (Kind::Vm, "VM"),
        (Kind::Process, "process"),
        (Kind::Plan, "plan"),
        (Kind::Policy, "policy"),
    ];
    let seen: Vec<_> = kinds.into_iter().map(|(kind, one)| (of(kind), one)).filter(|(n, _)| *n > 0).collect();
    html! {
        @for (at, (n, one)) in seen.iter().enumerate() {
            @if at > 0 { ", " }
            (number(*n)) " "
            @match (*n, *one) {
                (1, one) => (one),
                (_, "process") => "processes",
                (_, "policy") => "policies",
                (_, one) => { (one) "s" }
            }
        }
        @if seen.is_empty() { "nothing" }
    }
}

fn headline(tally: &Tally) -> &'static str {
    match tally.outcome {
        Outcome::Nothing => "Nothing was checked",
        Outcome::Passed => "Every check passed",
        Outcome::Incomplete => "Nothing failed, but not everything could be looked at",
        Outcome::Failed(Severity::Critical) => "Critical: confinement is broken",
        Outcome::Failed(Severity::High) => "Failed: a layer does not hold",
        Outcome::Failed(Severity::Medium | Severity::Low) => "Weaknesses were found",
        Outcome::Failed(Severity::Info) => "Nothing failed",
    }
}

fn verdict(report: &Report, tally: &Tally) -> Markup {
    let (tone, symbol) = match tally.outcome {
        Outcome::Passed => ("pass", "pass"),
        Outcome::Nothing | Outcome::Incomplete => ("unknown", "unknown"),
        Outcome::Failed(severity) => (severity.word(), severity.word()),
    };
    let noted = tally.failures(Severity::Info);
    let failed = checks(&tally.failed) - noted;
    let (unknown, passed) = (checks(&tally.unknown), checks(&tally.passed));
    html! {
        section.verdict.(tone) aria-labelledby="verdict" {
            div.says {
                (icon(symbol))
                div {
                    h1 #verdict { (headline(tally)) }
                    p {
                        (count(failed + noted + unknown + passed, "check")) ": " (number(failed)) " failed, "
                        @if noted > 0 { (number(noted)) " noted, " }
                        (number(unknown)) " could not be made, " (number(passed)) " passed."
                        @if !report.waived.is_empty() { " " a href="#waived" { (count(report.waived.len(), "rule")) " switched off" } " by the profile." }
                        @if tally.outcome == Outcome::Nothing { " An audit that looked at nothing proves nothing." }
                    }
                    (bar(failed, unknown, noted, passed))
                }
            }
            ul.tiles aria-label="Failed, noted and unknown checks by severity" {
                @for severity in SEVERITIES {
                    @let n = tally.failures(severity);
                    li.(severity.word()).zero[n == 0] { a href="#findings" { strong { (number(n)) } span { (icon(severity.word())) (severity.word()) } } }
                }
                li.unknown.zero[unknown == 0] { a href=(if unknown == 0 { "#findings" } else { "#unknown" }) { strong { (number(unknown)) } span { (icon("unknown")) "unknown" } } }
            }
        }
    }
}

/// Shares of failed, unknown, noted and passed checks; what is there at all is never thinner than a hair.
fn bar(failed: usize, unknown: usize, noted: usize, passed: usize) -> Markup {
    let total = failed + unknown + noted + passed;
    let width = |n: usize| if n == 0 { 0 } else { (n * 1000 / total.max(1)).clamp(8, 1000) };
    let (f, u, n) = (width(failed), width(unknown), width(noted));
    html! {
        @if total > 0 {
            svg.bar viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true" {
                rect.pass[passed > 0].none[passed == 0] x="0" y="0" width="1000" height="10" {}
                rect.info x=(f + u) y="0" width=(n) height="10" {}
                rect.unknown x=(f) y="0" width=(u) height="10" {}
                rect.fail x="0" y="0" width=(f) height="10" {}
            }
        }
    }
}

fn icon(name: &str) -> Markup {
    html! { svg.icon aria-hidden="true" { use href={ "#i-" (name) } {} } }
}

/// The symbols; each has a form of its own, so that colour is never alone.
fn sprite() -> Markup {
    let circle = "M8 1a7 7 0 1 1 0 14A7 7 0 0 1 8 1z";
    let square =
        "M2.5 0h11A2.5 2.5 0 0 1 16 2.5v11a2.5 2.5 0 0 1-2.5 2.5h-11A2.5 2.5 0 0 1 0 13.5v-11A2.5 2.5 0 0 1 2.5 0z";
    let exclamation = "M8 4.6v4.6M8 11.6v.2";
    let check = "M4.7 8.4l2.3 2.3 4.4-5";
    let cross = "M5.2 5.2l5.6 5.6M10.8 5.2l-5.6 5.6";
    let question = "M6 6.3a2 2 0 1 1 3 1.7c-.7.4-1 .8-1 1.5M8 11.6v.2";
    let dash = "M5 8h6";
    let symbols = [
        ("critical", "M5.1 1h5.8L15 5.1v5.8L10.9 15H5.1L1 10.9V5.1z", cross),
        ("high", "M8 1.2 15.6 14.6H.4z", "M8 6v4M8 12.2v.2"),
        ("medium", "M8 .4 15.6 8 8 15.6.4 8z", exclamation),
        ("low", circle, "M8 4.6v6M5.4 8.2 8 10.8l2.6-2.6"),
        ("info", circle, "M8 7.4v4M8 4.6v.2"),
        ("pass", circle, check),
        ("fail", circle, cross),
        ("unknown", circle, question),
        ("t-pass", square, check),
        ("t-fail", square, cross),
        ("t-unknown", square, question),
        ("inapplicable", circle, dash),
        ("t-inapplicable", square, dash),
    ];
    html! {
        svg.sprite aria-hidden="true" {
            @for (name, body, mark) in symbols {
                symbol id={ "i-" (name) } viewBox="0 0 16 16" { path.body d=(body) {} path.mark d=(mark) {} }
            }
            symbol id="i-casemate" viewBox="0 0 16 16" {
                path.body d="M1 15V7.5a7 7 0 0 1 14 0V15h-4V7.7a3 3 0 0 0-6 0V15z" {}
                path.body d="M6.5 15v-4.5h3V15z" {}
            }
            pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" { rect.hatch width="2" height="6" {} }
            pattern id="p-fail" width="4" height="4" patternUnits="userSpaceOnUse" { rect.fail width="4" height="4" {} path.mark d="M0 0l4 4M4 0L0 4" {} }
            pattern id="p-unknown" width="4" height="4" patternUnits="userSpaceOnUse" { rect.unknown width="4" height="4" {} circle.dot cx="2" cy="2" r=".9" {} }
        }
    }
}

fn about(report: &Report) -> Markup {
    html! {
        div.about {
            p { "A " strong { "rule" } " answers one threat. It makes checks on a subject: a host, a virtual machine (VM), a process, a plan, a SELinux policy." }
            ul.key {
                li.pass { (icon("pass")) strong { "passed" } " what must hold was looked at, and holds." }
                li.fail { (icon("fail")) strong { "failed" } " it was looked at, and does not hold. The severity is that of the threat." }
                li.info { (icon("info")) strong { "for information" } " it does not hold, and weakens no layer: noted, not failed." }
                li.unknown { (icon("unknown")) strong { "unknown" } " it could not be looked at, with the reason. Unknown is never counted as passed." }
                li.inapplicable { (icon("inapplicable")) strong { "not applicable" } " there is nothing to look at, as labels on a host without SELinux." }
            }
            p { "Names and paths are shown as they were found. Characters that have no picture, or change the direction of writing, are replaced by their code, as " span.ctl { "<U+202E>" } "." }
            p { "Exit status of the audit: " strong { (report.exit_status()) } ". 0: nothing failed; 1: low or medium; 3: high; 4: critical; 5: nothing failed, but something could not be looked at." }
            p { "This page tells what was seen at the time above by whoever ran the audit; it is not signed. For proof to a third party, use " code { "casemate evidence" } "." }
        }
    }
}
