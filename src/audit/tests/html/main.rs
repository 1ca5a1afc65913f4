//! The HTML report, read as a browser reads it (html5ever): hostile text stays text, nothing is loaded, nothing is left out.

mod specimen;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use casemate_audit::report::{Report, html::page};
use scraper::{ElementRef, Html, Node, Selector};
use serde_json::Value;

/// Ends every construct that a careless page could put a name into, and deceives the eye.
const HOSTILE: &str = "</script></style></title></svg></td>-->]]><img src=//evil.example/x onerror=alert(1)><script>alert(2)</script>\
    \" ' onmouseover=\"alert(3)\" style='x' `${7*7}` {{7*7}} javascript:alert(4) &lt;b&gt; &#60;i&#62;\n\r\t\0\u{1b}[2J\u{9b}1m\
    \u{202e}gpj.exe\u{2066}\u{200b}\u{feff}\u{3164}\u{2028}\u{e0041}\u{a0}a\u{300}\u{301}\u{302}\u{303}";

/// Elements of ours that make text visible; a hostile report has more of them than a plain one, and of nothing else.
const MARKS: [&str; 3] = ["bdi", "span.ctl", "code.said"];

fn parsed(page: &str) -> Html {
    let html = Html::parse_document(page);
    assert_eq!(html.errors, Vec::<String>::new(), "a page that a browser must repair");
    html
}

fn select<'a>(html: &'a Html, selector: &str) -> Vec<ElementRef<'a>> {
    html.select(&Selector::parse(selector).expect("a selector")).collect()
}

/// The report with each string that the form leaves free replaced by `text` and a number; how many there are.
///
/// Strings are found in the report's own JSON, so that a field that is added later is among them. One that names a variant
/// (`pass`, `critical`) cannot be replaced: then the report would not be one.
fn filled(report: &Report, text: &str) -> (Report, usize) {
    let mut value = serde_json::to_value(report).expect("JSON");
    let mut pointers = Vec::new();
    collect(&value, String::new(), &mut pointers);
    let mut filled = 0;
    // What was found out for one element of a list holds for the others.
    let mut free = BTreeMap::new();
    for pointer in pointers {
        let shape: Vec<_> = pointer.split('/').filter(|part| !part.bytes().all(|b| b.is_ascii_digit())).collect();
        let shape = shape.join("/");
        if free.get(&shape) == Some(&false) {
            continue;
        }
        let place = value.pointer_mut(&pointer).expect("found there");
        let was = std::mem::replace(place, Value::String(format!("{text}#{filled:05}#")));
        let is_free = *free.entry(shape).or_insert_with(|| serde_json::from_value::<Report>(value.clone()).is_ok());
        if is_free {
            filled += 1;
        } else {
            *value.pointer_mut(&pointer).expect("found there") = was;
        }
    }
    filled += rename_keys(&mut value, text, filled);
    (serde_json::from_value(value).expect("a report"), filled)
}

fn collect(value: &Value, at: String, pointers: &mut Vec<String>) {
    match value {
        Value::String(_) => pointers.push(at),
        Value::Array(all) => all.iter().enumerate().for_each(|(n, v)| collect(v, format!("{at}/{n}"), pointers)),
        Value::Object(all) => {
            for (key, value) in all {
                collect(value, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), pointers);
            }
        }
        _ => {}
    }
}

/// Keys of maps: layers of the matrix, namespaces, limits, booleans, vulnerabilities.
fn rename_keys(value: &mut Value, text: &str, from: usize) -> usize {
    const MAPS: [&str; 6] = ["layers", "namespaces", "rlimits", "limits", "vulnerabilities", "booleans"];
    let mut renamed = 0;
    match value {
        Value::Array(all) => all.iter_mut().for_each(|v| renamed += rename_keys(v, text, from + renamed)),
        Value::Object(all) => {
            for (key, value) in all.iter_mut() {
                let inner = if value.get("seen").is_some() { value.get_mut("seen") } else { Some(value) };
                let Some(inner) = inner else { continue };
                if let (true, Value::Object(map)) = (MAPS.contains(&key.as_str()), &mut *inner) {
                    let old = std::mem::take(map);
                    for (_, value) in old {
                        map.insert(format!("{text}#{:05}#", from + renamed), value);
                        renamed += 1;
                    }
                }
                renamed += rename_keys(inner, text, from + renamed);
            }
        }
        _ => {}
    }
    renamed
}

fn is_mark(element: &scraper::node::Element) -> bool {
    let name = element.attr("class").map_or_else(|| element.name().to_owned(), |c| format!("{}.{c}", element.name()));
    MARKS.contains(&name.as_str()) || element.name() == "bdi"
}

/// Elements with the names of their attributes, in order, without those that mark what is hidden.
fn skeleton(html: &Html) -> Vec<String> {
    let mut out = Vec::new();
    for element in select(html, "*") {
        let value = element.value();
        if is_mark(value) {
            continue;
        }
        let mut attributes: Vec<_> = value.attrs().map(|(name, _)| name).collect();
        attributes.sort_unstable();
        let depth = element.ancestors().filter(|n| n.value().as_element().is_some_and(|e| !is_mark(e))).count();
        out.push(format!("{depth} {} {attributes:?}", value.name()));
    }
    out
}

#[test]
fn hostile_text_in_every_field_stays_text() {
    let report = specimen::report(3);
    let (plain, fields) = filled(&report, "plain");
    let (hostile, same) = filled(&report, HOSTILE);
    assert_eq!(fields, same);
    assert!(fields > 400, "{fields} fields");
    let (plain, page) = (parsed(&page(&plain)), page(&hostile));
    let html = parsed(&page);
    let (a, b) = (skeleton(&plain), skeleton(&html));
    assert!(a.len() > 500, "{} elements", a.len());
    for (at, (a, b)) in a.iter().zip(&b).enumerate() {
        assert_eq!(a, b, "element {at}");
    }
    assert_eq!(a.len(), b.len());
    // It got there: the same fields are on both pages, as text.
    let numbers = |html: &Html| -> BTreeSet<String> {
        let text: String = html.root_element().text().collect();
        text.split('#').filter(|t| t.len() == 5 && t.bytes().all(|b| b.is_ascii_digit())).map(str::to_owned).collect()
    };
    assert_eq!(numbers(&plain), numbers(&html));
    assert!(numbers(&html).len() * 10 > fields * 9, "{} of {fields} fields are on the page", numbers(&html).len());
    for c in [
        '\0',
        '\u{1b}',
        '\u{9b}',
        '\u{202e}',
        '\u{2066}',
        '\u{200b}',
        '\u{feff}',
        '\u{3164}',
        '\u{2028}',
        '\u{e0041}',
        '\u{a0}',
        '\u{303}',
    ] {
        assert!(!page.contains(c), "U+{:04X} is on the page as it is", c as u32);
    }
    safe(&html);
    keep("hostile", &page);
}

/// The tests above would notice: an element, an attribute, a handler that came out of a name.
#[test]
fn what_is_injected_is_noticed() {
    let (plain, _) = filled(&specimen::report(2), "plain");
    let page = page(&plain);
    let before = skeleton(&parsed(&page));
    for injected in ["<b>x</b>", "<a onclick=x>y</a>", "<img src=//evil.example>"] {
        let name = page.find("plain#").expect("a field");
        let broken = format!("{}{injected}{}", &page[..name], &page[name..]);
        let title = broken.find("</title>").expect("a title");
        let broken = if name < title { page.replacen("</h1>", &format!("{injected}</h1>"), 1) } else { broken };
        let html = Html::parse_document(&broken);
        assert_ne!(before, skeleton(&html), "{injected}");
        let refused = std::panic::catch_unwind(|| safe(&Html::parse_document(&broken))).is_err();
        assert_eq!(refused, injected != "<b>x</b>", "{injected}");
    }
    assert!(!Html::parse_document("<!DOCTYPE html><p title='a'title=b></p></td>").errors.is_empty());
}

/// No script, no handler, no style but ours, no reference that leaves the page.
fn safe(html: &Html) {
    let ids: BTreeSet<_> = select(html, "[id]").iter().filter_map(|e| e.attr("id")).collect();
    for element in select(html, "*") {
        let name = element.value().name();
        assert!(
            ![
                "script",
                "iframe",
                "object",
                "embed",
                "link",
                "img",
                "image",
                "base",
                "form",
                "video",
                "audio",
                "foreignObject",
                "a:href"
            ]
            .contains(&name),
            "<{name}>"
        );
        for (attribute, value) in element.value().attrs() {
            assert!(!attribute.starts_with("on") && attribute != "style" && attribute != "src", "<{name} {attribute}>");
            if attribute == "href" {
                assert!(value.starts_with('#'), "<{name} href={value}>");
                assert!(ids.contains(&value[1..]), "{value} leads nowhere");
            }
            if value.contains("url(") {
                assert!(attribute == "fill" && value.starts_with("url(#"), "{attribute}={value}");
            }
        }
    }
    let style = select(html, "style");
    assert_eq!(style.len(), 1);
    let css: String = style[0].text().collect();
    assert!(
        !css.contains("url(") && !css.contains("@import") && !css.contains("@font-face"),
        "the style sheet loads something"
    );
}

#[test]
fn only_our_style_sheet_is_allowed() {
    use base64::Engine;
    use sha2::{Digest, Sha256};
    let html = parsed(&page(&specimen::report(2)));
    let policy = select(&html, "meta[http-equiv=Content-Security-Policy]")[0].attr("content").expect("content");
    let css: String = select(&html, "style")[0].text().collect();
    let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(css));
    assert_eq!(policy, format!("default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"));
    // It stands before what it governs.
    let order: Vec<_> = select(&html, "meta[http-equiv], style").iter().map(|e| e.value().name()).collect();
    assert_eq!(order, ["meta", "style"]);
}

#[test]
fn every_vm_and_every_finding_is_there() {
    for vms in [2, 5, 20] {
        let report = specimen::report(vms);
        let text = page(&report);
        let html = parsed(&text);
        safe(&html);
        let rows = select(&html, "table.evidence tbody tr").len();
        assert_eq!(rows, report.findings.len(), "one row for each finding");
        for vm in &report.matrix.vms {
            assert!(
                select(&html, "details.subject summary h3").iter().any(|h| h.text().collect::<String>() == *vm),
                "{vm}"
            );
        }
        let texts: BTreeSet<String> = select(&html, "dd, td, code.rule").iter().map(|e| e.text().collect()).collect();
        for finding in &report.findings {
            for part in [&finding.rule, &finding.threat, &finding.remedy, &finding.check.expected] {
                assert!(texts.contains(&part.replace('`', "")), "{part}");
            }
        }
        let ids: Vec<_> = select(&html, "[id]").iter().filter_map(|e| e.attr("id")).collect();
        assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "an id stands twice");
        keep(&format!("{vms}-vms"), &text);
    }
}

#[test]
fn pictures_of_few_and_many_vms_say_the_same() {
    // Few: every ordered pair has its cell, each divided by layer.
    let html = parsed(&page(&specimen::report(5)));
    assert_eq!(select(&html, "svg.grid g.cell").len(), 20);
    assert_eq!(select(&html, "svg.grid g.t").len(), 20 * 8);
    assert_eq!(select(&html, "svg.grid g.t.fail").len(), 2);
    assert_eq!(select(&html, "svg.grid g.t.unknown").len(), 4);
    let reason = select(&html, "svg.grid g.t.fail title")[0].text().collect::<String>();
    assert_eq!(reason, "agent → job-4\nselinux does not hold: both have the level s0:c41,c977");
    // Many: the one that was not looked at in full, the two that share a level, all the others.
    let html = parsed(&page(&specimen::report(200)));
    assert_eq!(select(&html, "svg.grid text.from").len(), 3);
    assert_eq!(
        select(&html, "svg.grid g.cell").len(),
        8,
        "every group to every other, and within those that are several"
    );
    assert_eq!(select(&html, "figure.map rect.high").len(), 2);
    let members: usize =
        select(&html, "ol.members li").iter().map(|li| li.text().collect::<String>().split(", ").count()).sum();
    assert_eq!(members, 200);
}

#[test]
fn an_audit_that_looked_at_nothing_is_no_success() {
    let mut report = specimen::report(2);
    let headline = |report: &Report| select(&parsed(&page(report)), "h1")[0].text().collect::<String>();
    assert_eq!(headline(&report), "Critical: confinement is broken");
    report.findings.retain(|f| f.check.verdict != casemate_audit::rule::Verdict::Fail);
    assert!(headline(&report).contains("not everything could be looked at"));
    report.findings.retain(|f| f.check.verdict == casemate_audit::rule::Verdict::Pass);
    assert_eq!(headline(&report), "Every check passed");
    report.findings.clear();
    assert_eq!(headline(&report), "Nothing was checked");
    report.subjects.clear();
    report.matrix = Default::default();
    report.time = u64::MAX;
    safe(&parsed(&page(&report)));
}

/// A report from somewhere else may say anything: parents in a circle, numbers that lead nowhere.
#[test]
fn nonsense_is_drawn_without_end_or_panic() {
    let mut report = specimen::report(3);
    for (at, process) in report.subjects[1].processes.iter_mut().enumerate() {
        process.pid = Some(7 + at as u32);
        process.parent = Some(8 - at as u32);
    }
    report.matrix.common = 99;
    report.matrix.pairs[0].cell = 98;
    report.matrix.pairs.reverse();
    let html = parsed(&page(&report));
    assert_eq!(select(&html, "#s1 div.process").len(), 2, "each process stands once");
    assert!(select(&html, "svg.grid g.t.unknown").len() > 8);
}

#[test]
fn two_hundred_vms_make_a_page_that_a_browser_opens() {
    let report = specimen::report(200);
    let page = page(&report);
    assert!(page.len() < 12 << 20, "{} bytes", page.len());
    keep("200-vms", &page);
}

/// For eyes, and for scripts/screenshot.
fn keep(name: &str, page: &str) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(directory.join(format!("audit-{name}.html")), page).expect("a page in target/tmp");
}

/// `text` in the tree is what `Text` promised; comments would be a way around the parser.
#[test]
fn there_are_no_comments() {
    let (hostile, _) = filled(&specimen::report(2), HOSTILE);
    let html = parsed(&page(&hostile));
    assert!(!html.tree.values().any(|node| matches!(node, Node::Comment(_) | Node::ProcessingInstruction(_))));
}
