//! `casemate audit plan` and `audit policy check` as a user and a CI meet them: exit status, profiles, and the files that other
//! programs read, read by another program (Python's XML and JSON parsers).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use casemate_tests::guest;
use casemate_tests::jail::Host;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::jailer::check;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("audit_rules::{name}"), run);
    vec![
        trial("a_plan_is_judged_and_its_forms_agree", forms),
        trial("a_writable_kernel_is_named", writable_kernel),
        trial("a_plan_is_judged_by_another_hosts_facts", other_facts),
        trial("a_wrong_profile_is_refused", wrong_profile),
    ]
}

struct Audit {
    host: Host,
    spec: String,
    kernel: std::path::PathBuf,
}

impl Audit {
    fn new() -> Result<Self, Failed> {
        let host = Host::new()?;
        let kernel = host.file("vmlinuz");
        let elf = guest::pvh_elf(guest::spin);
        fs::write(&kernel, elf)?;
        fs::set_permissions(&kernel, fs::Permissions::from_mode(0o644))?;
        let spec = host.file("spec.toml");
        let name = host.name("plan");
        let text = format!("name = '{name}'\nbare = true\nmemory = '4M'\nkernel = '{}'\n", kernel.display());
        fs::write(&spec, text)?;
        Ok(Self { spec: spec.display().to_string(), kernel, host })
    }

    fn run(&self, more: &[&str]) -> Result<Output, Failed> {
        let mut command = Command::new(self.host.bin().join("casemate"));
        command.args(["audit", "plan", &self.spec]).args(more).env("CASEMATE_RUN_DIR", self.host.run_dir());
        Ok(command.env("CASEMATE_STATE_DIR", self.host.file("state")).stdin(Stdio::null()).output()?)
    }

    /// The report, and the exit status.
    fn json(&self, more: &[&str]) -> Result<(Value, i32), Failed> {
        let out = self.run(&[&["--format", "json"], more].concat())?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let report = serde_json::from_slice(&out.stdout).map_err(|error| format!("{error}: {said}"))?;
        Ok((report, out.status.code().unwrap_or(-1)))
    }

    fn file(&self, name: &str, text: &str) -> Result<String, Failed> {
        let path = self.host.file(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

fn rules(report: &Value, verdict: &str) -> Vec<String> {
    let all = report["findings"].as_array().cloned().unwrap_or_default();
    let found = all.iter().filter(|f| f["verdict"] == verdict).filter_map(|f| f["rule"].as_str());
    found.map(str::to_owned).collect()
}

/// Statuses as documented: what failed is worth 1, 3 or 4.
fn expected(report: &Value) -> i32 {
    let all = report["findings"].as_array().cloned().unwrap_or_default();
    let failed = all.iter().filter(|f| f["verdict"] == "fail").filter_map(|f| f["severity"].as_str());
    let worst = failed.map(|severity| match severity {
        "critical" => 4,
        "high" => 3,
        "medium" | "low" => 1,
        _ => 0,
    });
    worst.max().unwrap_or(0)
}

const READERS: &str = "
import json, sys, xml.etree.ElementTree as E
suites = E.parse(sys.argv[1]).getroot()
cases = suites.findall('testsuite/testcase')
log = json.load(open(sys.argv[2]))
assert log['version'] == '2.1.0', log['version']
run = log['runs'][0]
rules = run['tool']['driver']['rules']
for result in run['results']:
    assert rules[result['ruleIndex']]['id'] == result['ruleId']
place = run['artifacts'][0]['location']
assert place['uri'].startswith('file:///') and place['uri'].endswith('/spec.toml'), place
checks = sum(sum(rule['properties']['checks'].values()) for rule in rules)
print(len(cases), len(suites.findall('.//failure')), checks, len(run['results']))
";

fn forms() -> Result<(), Failed> {
    let audit = Audit::new()?;
    let profile = concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/audit-profile.toml");
    let (report, code) = audit.json(&["--profile", profile])?;
    let failed = rules(&report, "fail");
    check(code == expected(&report), format!("exit status {code}, failed {failed:?}"))?;
    let passed = rules(&report, "pass");
    for rule in ["capabilities.none", "seccomp.ours", "landlock.complete", "profile.seccomp", "profile.plan"] {
        check(passed.iter().any(|p| p == rule), format!("{rule} did not pass: {passed:?}"))?;
    }
    check(rules(&report, "unknown").is_empty(), "something was not looked at")?;
    check(report["waived"][0]["rule"] == "host.smt", "what is switched off is told")?;
    let (junit, sarif) = (audit.host.file("a.xml"), audit.host.file("a.sarif"));
    for (format, path) in [("junit", &junit), ("sarif", &sarif)] {
        let path = path.display().to_string();
        let out = audit.run(&["--format", format, "-o", &path, "--profile", profile])?;
        check(out.status.code() == Some(code) && out.stdout.is_empty(), format!("{format}: {}", out.status))?;
    }
    let read = Command::new("python3").args(["-c", READERS]).arg(&junit).arg(&sarif).output()?;
    let said = String::from_utf8_lossy(&read.stdout).trim().to_owned();
    let all = report["findings"].as_array().map_or(0, Vec::len);
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let notes = findings.iter().filter(|f| f["verdict"] == "fail" && f["severity"] == "info").count();
    // JUnit has a case more, for the rule that is switched off, and no failure that is none.
    let wanted = format!("{} {} {all} {}", all + 1, failed.len() - notes, failed.len());
    check(said == wanted, format!("{said:?}, not {wanted:?}: {}", String::from_utf8_lossy(&read.stderr)))?;
    let text = audit.run(&[])?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let last = text.lines().last().unwrap_or_default();
    check(last.contains("passed") && last.contains("failed") && last.contains("unknown"), last)?;
    let page = audit.host.file("a.html").display().to_string();
    let html = audit.run(&["--format", "html", "-o", &page, "--profile", profile])?;
    check(html.status.code() == Some(code), "html ends as the others do")?;
    check(fs::read_to_string(audit.host.file("a.html"))?.contains("</html>"), "a whole page")?;
    audit.host.spotless()
}

fn writable_kernel() -> Result<(), Failed> {
    let audit = Audit::new()?;
    let named = |report: &Value| rules(report, "fail").iter().filter(|rule| *rule == "objects.protected").count();
    let (before, _) = audit.json(&[])?;
    fs::set_permissions(&audit.kernel, fs::Permissions::from_mode(0o666))?;
    let (report, code) = audit.json(&[])?;
    check(code >= 3 && named(&report) == 1, format!("{code}: {:?}", rules(&report, "fail")))?;
    check(named(&before) == 0, format!("before: {:?}", rules(&before, "fail")))?;
    audit.host.spotless()
}

fn other_facts() -> Result<(), Failed> {
    let audit = Audit::new()?;
    let facts = Command::new(audit.host.bin().join("casemate-jailer")).arg("facts").output()?;
    let mut facts: Value = serde_json::from_slice(&facts.stdout)?;
    let here = audit.file("facts.json", &facts.to_string())?;
    let (report, code) = audit.json(&["--facts", &here])?;
    check(code == expected(&report), format!("{code}: {:?}", rules(&report, "fail")))?;
    // A host without Landlock and cgroups: named, though this one has both.
    facts["landlock_abi"] = 0.into();
    facts["cgroup"] = "none".into();
    let weak = audit.file("weak.json", &facts.to_string())?;
    let (report, code) = audit.json(&["--facts", &weak])?;
    let failed = rules(&report, "fail");
    for rule in ["landlock.present", "cgroup.limited", "posture.not-reduced", "posture.no-blockers"] {
        check(failed.iter().any(|f| f == rule), format!("{rule}: {failed:?}"))?;
    }
    check(code == 3, format!("{code}"))?;
    let bad = audit.file("bad.json", "{}")?;
    let out = audit.run(&["--facts", &bad])?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    check(out.status.code() == Some(125) && said.contains("casemate-jailer facts"), said)?;
    audit.host.spotless()
}

fn wrong_profile() -> Result<(), Failed> {
    let audit = Audit::new()?;
    for (text, told) in [
        ("[rules.'capabilities.non']\n", "did you mean capabilities.none?"),
        ("[[seccomp.deny]]\ncall = 'opennat'\nreason = 'r'\n", "did you mean openat?"),
        ("extends = 'none'\n", "look at nothing"),
        ("[rules.'host.swap']\nenabled = false\n", "needs a reason"),
        ("not toml", "no TOML"),
    ] {
        let profile = audit.file("p.toml", text)?;
        let report = audit.host.file("never.xml");
        let path = report.display().to_string();
        let out = audit.run(&["--profile", &profile, "--format", "junit", "-o", &path])?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        check(out.status.code() == Some(125) && said.contains(told), format!("{text}: {} {said}", out.status))?;
        check(!report.exists(), "a refused audit writes no report")?;
    }
    audit.host.spotless()
}
