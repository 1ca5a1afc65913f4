//! Remarks for a reader: what is dangerous for one reason is told once.

use super::{Remark, RemarkId};

/// Stands in a remark between what is allowed and the ABIs with the reason: `ptrace is allowed (x86-64): reads …`.
pub(super) const IS_ALLOWED: &str = " is allowed";

/// What is allowed, by ABIs, reason and place.
struct Group<'a> {
    remark: &'a Remark,
    allowed: Vec<&'a str>,
    abis: &'a str,
    why: &'a str,
}

/// What is allowed, on which ABIs, and why that is dangerous; of a remark of this form.
fn parts(remark: &Remark) -> Option<(&str, &str, &str)> {
    let of = [RemarkId::DangerousCall, RemarkId::TerminalInjection, RemarkId::SocketFamily];
    let (what, rest) = remark.text.split_once(IS_ALLOWED).filter(|_| of.contains(&remark.id))?;
    let (abis, why) = rest.strip_prefix(" (")?.split_once("): ")?;
    Some((what, abis, why))
}

fn groups<'a>(remarks: impl IntoIterator<Item = &'a Remark>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group> = Vec::new();
    for remark in remarks {
        let Some((what, abis, why)) = parts(remark) else {
            groups.push(Group { remark, allowed: Vec::new(), abis: "", why: "" });
            continue;
        };
        let place = |remark: &Remark| (remark.severity, remark.filter, remark.instruction);
        let same = |group: &&mut Group| (group.abis, group.why, place(group.remark)) == (abis, why, place(remark));
        match groups.iter_mut().find(same) {
            Some(group) => group.allowed.push(what),
            None => groups.push(Group { remark, allowed: vec![what], abis, why }),
        }
    }
    groups
}

/// Remarks, those with one reason and severity as one.
pub fn by_reason<'a>(remarks: impl IntoIterator<Item = &'a Remark>) -> Vec<Remark> {
    let told = groups(remarks).into_iter().map(|Group { remark, allowed, abis, why }| match allowed.len() {
        0 | 1 => remark.clone(),
        _ => {
            Remark { text: format!("{} are allowed ({abis}): {why}", allowed.join(", ")), call: None, ..remark.clone() }
        }
    });
    told.collect()
}

/// Remarks as one line, ABIs told once: `x86-64: ptrace (reads …), mount, chroot (changes …)`.
pub fn in_one_line<'a>(remarks: impl IntoIterator<Item = &'a Remark>) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut abis: Vec<(&str, Vec<String>)> = Vec::new();
    for group in groups(remarks) {
        let text = format!("{} ({})", group.allowed.join(", "), group.why);
        match abis.iter_mut().find(|(abi, _)| *abi == group.abis) {
            _ if group.allowed.is_empty() => lines.push(group.remark.text.clone()),
            Some((_, texts)) => texts.push(text),
            None => abis.push((group.abis, vec![text])),
        }
    }
    lines.extend(abis.into_iter().map(|(abi, texts)| format!("allowed on {abi}: {}", texts.join(", "))));
    lines.join("; ")
}
