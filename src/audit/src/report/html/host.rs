//! What the host is like: kernel, LSMs, mitigations, what can leak guest memory.

use maud::{Markup, html};

use super::tables::unseen;
use super::text::{Text, lines};
use super::{icon, tables};
use crate::report::Report;
use crate::subject::{Host, Kind, Known};

pub fn section(report: &Report) -> Option<Markup> {
    let of_host = report.subjects.iter().filter(|s| s.kind == Kind::Host);
    let hosts: Vec<_> =
        of_host.chain(report.subjects.iter().filter(|s| s.kind != Kind::Host)).map(|s| &s.host).collect();
    let seen = hosts.iter().find_map(|host| host.seen());
    match (seen, hosts.first()) {
        (Some(host), _) => Some(facts(host)),
        (None, Some(Known::Unseen(why))) if report.subjects.iter().any(|s| s.kind == Kind::Host) => Some(unseen(why)),
        _ => None,
    }
}

fn facts(host: &Host) -> Markup {
    let tristate = |value: Option<bool>| match value {
        Some(true) => "on",
        Some(false) => "off",
        None => "not known",
    };
    let weak: Vec<_> = host.vulnerabilities.iter().filter(|(_, says)| vulnerable(says)).collect();
    html! {
        dl.facts {
            div { dt { "Kernel" } dd { (Text(&host.kernel)) } }
            div { dt { "SELinux" } dd { (Text(&host.selinux)) } }
            div { dt { "Landlock ABI" } dd { (host.landlock_abi) } }
            div { dt { "cgroup" } dd { (Text(&host.cgroup)) } }
            div { dt { "SMT" } dd { (tristate(host.smt)) } }
            div { dt { "KSM" } dd { (tristate(host.ksm)) } }
            div { dt { "Swap" } dd { (lines(&host.swap)) } }
            div { dt { "CPU vulnerabilities" } dd { (host.vulnerabilities.len()) " known to the kernel, "
                @if weak.is_empty() { "none open" } @else { strong { (weak.len()) " open" } } } }
        }
        (tables::fold("CPU vulnerabilities, as the kernel tells them", Some(host.vulnerabilities.len()), tables::table(
            "CPU vulnerabilities",
            &["Name", "The kernel says"],
            host.vulnerabilities.iter().map(|(name, says)| vec![
                html! { (Text(name)) },
                html! { @if vulnerable(says) { (icon("high")) } (Text(says)) },
            ]),
        )))
    }
}

/// As in Documentation/admin-guide/hw-vuln: `Vulnerable…`, or `KVM: Vulnerable`, `SMT vulnerable` in a longer line.
fn vulnerable(says: &str) -> bool {
    says.to_ascii_lowercase().contains("vulnerable")
}
