//! The auditor's answers about the policy, held against the kernel that enforces it and against setools.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use casemate_audit::Policy;
use casemate_audit::policy::ask;
use casemate_audit::policy::vm::{Family, Vm};
use libtest_mimic::{Failed, Trial};

use crate::l1;

pub fn tests() -> Vec<Trial> {
    vec![
        Trial::test("audit: decisions are the kernel's, class by class", decisions_are_the_kernels),
        Trial::test("audit: a VM's rights are those that setools finds", rights_are_those_of_setools),
        Trial::test("audit: the loaded policy and its file give the same answers", live_and_file_agree),
    ]
}

struct Audited {
    policy: Policy,
    family: Family,
    a: Vm,
    b: Vm,
    _dir: tempfile::TempDir,
    file: std::path::PathBuf,
}

/// The policy that L1's kernel has, as a file here.
fn audited() -> Result<Audited, Failed> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("policy");
    l1::sh(None, "cat /sys/fs/selinux/policy > /tmp/audit.policy")?;
    l1::pull("/tmp/audit.policy", &file)?;
    let policy = Policy::read(&file)?;
    let family = Family::find(&policy, Some("casemate"))?;
    let (a, b) = (family.at(&policy, "s0:c1,c2")?, family.at(&policy, "s0:c3,c4")?);
    Ok(Audited { policy, family, a, b, _dir: dir, file })
}

/// Every class, for the own and a foreign image and runner, and content: libsepol's decision is the kernel's
/// (selinuxfs, through compute_av).
fn decisions_are_the_kernels() -> Result<(), Failed> {
    let audited = audited()?;
    let Audited { policy, a, b, .. } = &audited;
    let targets = [&a.image, &b.image, &a.runner, &b.runner, &a.content];
    let mut script = String::from("cd /sys/fs/selinux/class; for class in *; do\n");
    for target in targets {
        script.push_str(&format!("echo \"== $class {target}\"; compute_av {} {target} $class\n", a.runner));
    }
    script.push_str("done");
    let output = l1::sh(None, &script)?;
    let told = String::from_utf8_lossy(&output.stdout);
    let (mut compared, mut granted) = (0, 0);
    for answer in told.split("== ").skip(1) {
        let (head, rest) = answer.split_once('\n').unwrap_or((answer, ""));
        let (class, target) = head.split_once(' ').ok_or("no class and target")?;
        let kernel = allowed_of(rest).ok_or_else(|| format!("no answer for {head}: {rest}"))?;
        let ours: BTreeSet<String> = policy.allowed(&a.runner, target, class)?.into_iter().map(str::to_owned).collect();
        if kernel != ours {
            return Err(format!("{head}: the kernel says {kernel:?}, the audit {ours:?}").into());
        }
        compared += 1;
        granted += usize::from(!ours.is_empty());
    }
    if compared < 500 || granted < 6 {
        return Err(format!("only {compared} decisions, {granted} of them granting: {told}").into());
    }
    Ok(())
}

/// The `allowed=` line of compute_av(8): `{ read write }`, one word, or `null`.
fn allowed_of(text: &str) -> Option<BTreeSet<String>> {
    let line = text.lines().find_map(|line| line.strip_prefix("allowed="))?;
    let words = line.trim().trim_start_matches('{').trim_end_matches('}').split_whitespace();
    Some(words.filter(|word| *word != "null").map(str::to_owned).collect())
}

fn rights_are_those_of_setools() -> Result<(), Failed> {
    let Audited { policy, family, a, file, .. } = &audited()?;
    let ours: BTreeSet<String> = ask::rights(policy, family, a)?
        .into_iter()
        .flat_map(|((type_, class), may)| may.into_iter().map(move |p| format!("{type_}:{class} {p}")))
        .collect();
    let theirs = sesearch(policy, family, file)?;
    // setools knows rules, not constraints; objects without categories are held back by none of ours.
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let surplus: Vec<_> = ours.difference(&theirs).collect();
    if missing.is_empty() && surplus.is_empty() && ours.len() > 20 {
        return Ok(());
    }
    Err(format!("setools alone: {missing:?}; the audit alone: {surplus:?}; {} in all", ours.len()).into())
}

fn sesearch(policy: &Policy, family: &Family, file: &Path) -> Result<BTreeSet<String>, Failed> {
    let output = Command::new("sesearch").args(["-A", "-s", &family.runner]).arg(file).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let mut rights = BTreeSet::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // allow SOURCE TARGET:CLASS { a b };   allow SOURCE TARGET:CLASS a;
        let Some((head, permissions)) = line.strip_prefix("allow ").and_then(|rest| rest.split_once(':')) else {
            continue;
        };
        let target = head.split_whitespace().nth(1).ok_or("a rule without target")?;
        let (class, permissions) = permissions.split_once(' ').ok_or("a rule without permissions")?;
        // A conditional rule ends with its boolean and the value for which it holds: only what holds now counts.
        let (permissions, condition) = permissions.split_once(';').ok_or("a rule without an end")?;
        if let Some((name, value)) = condition.trim().strip_prefix('[').and_then(|c| c.split_once("]:")) {
            let now = policy.facts().booleans.get(name.trim());
            let now = now.ok_or_else(|| format!("a condition that is not one boolean: {line}"))?;
            if *now != (value == "True") {
                continue;
            }
        }
        let words: Vec<&str> = permissions.split([' ', '{', '}']).filter(|word| !word.is_empty()).collect();
        let targets: Vec<&str> =
            if target == "self" { vec![&family.runner] } else { policy.facts().types_of(target).collect() };
        for type_ in targets {
            rights.extend(words.iter().map(|permission| format!("{type_}:{class} {permission}")));
        }
    }
    Ok(rights)
}

/// `casemate audit` in L1 with the kernel's policy, and with a file of it; and an unreadable file is refused there.
fn live_and_file_agree() -> Result<(), Failed> {
    l1::sh(None, "cat /sys/fs/selinux/policy > /tmp/audit.policy")?;
    for question in ["reach", "constrained", "entries"] {
        let ask = |more: &str| l1::sh(None, &format!("casemate --format json audit policy {question} {more}"));
        let (live, file) = (ask("")?, ask("--file /tmp/audit.policy")?);
        let rows = |output: &std::process::Output| -> Result<serde_json::Value, Failed> {
            let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
                .map_err(|e| format!("{question}: {e}: {}", String::from_utf8_lossy(&output.stderr)))?;
            Ok(answer["rows"].clone())
        };
        let (live, file) = (rows(&live)?, rows(&file)?);
        if live != file || live.as_array().is_none_or(Vec::is_empty) {
            return Err(format!("{question}: live {live}, file {file}").into());
        }
    }
    let bad = l1::sh(None, "head -c 100000 /tmp/audit.policy > /tmp/short; casemate audit policy --file /tmp/short")?;
    let said = String::from_utf8_lossy(&bad.stderr);
    if bad.status.success() || !said.contains("truncated") {
        return Err(format!("a truncated policy: {said}").into());
    }
    Ok(())
}
