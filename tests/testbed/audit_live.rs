//! The audit of what lives, on a host that enforces: whole sandboxes pass, and what was broken on purpose is named.

use casemate_audit::report::Report;
use casemate_audit::rule::{Finding, Severity, Verdict};
use casemate_audit::subject::{Known, Process};
use libtest_mimic::{Failed, Trial};

use crate::cli::script;
use crate::{l1, matrix};

/// The emulated processor has holes that no sandbox is the cause of.
const PROFILE: &str = "[rules.\"host.vulnerabilities\"]\nenabled = false\nreason = \"an emulated processor\"\n";
/// Not in any directory of Casemate's; it is in `image_dirs`.
const STRAY: &str = "/var/lib/libvirt/images/stray.img";
/// `bare NAME [OPTION…]` starts a sandbox that costs nothing; `ours NAME` are its two processes, the runner last.
const TOOLS: &str = r#"
bare() { name=$1; shift; want 0 casemate run -d -q --bare --memory 4M --kernel /tmp/asleep.elf --name $name "$@"; }
ours() { for role in warden runner; do casemate inspect --format json $1 | grep -A1 "\"$role\"" | grep -o '"pid": *[0-9]*' | grep -o '[0-9]*'; done; }
"#;
const SWEEP: &str = "casemate repair >/dev/null 2>&1; for vm in $(casemate ps -aq | grep ^cli-au-); do casemate rm -f $vm; done; \
    [ ! -e /tmp/au.pids ] || kill $(cat /tmp/au.pids) 2>/dev/null; \
    rm -f /var/lib/libvirt/images/stray.img /var/lib/au-sleep /var/lib/au.img /tmp/au.*";

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| {
        Trial::test(format!("audit_live: {name}"), move || {
            let result = l1::patiently(run);
            l1::sh(None, SWEEP)?;
            result
        })
    };
    vec![
        trial("two sandboxes are seen whole, hold, and are kept apart", whole),
        trial("a collision, a shared level and what a dead sandbox left are named, each until it is gone", broken),
        trial("selftest and probe in a directory that is a mount point leave the host its root", root_stays),
    ]
}

/// `casemate audit ARGS` with the exit status checked against its own report.
fn audit(args: &str) -> Result<Report, Failed> {
    let command =
        format!("cat > /tmp/au.toml <<'END'\n{PROFILE}END\ncasemate audit {args} --format json --profile /tmp/au.toml");
    let output = l1::sh(None, &command)?;
    let report: Report = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("audit {args}: {e}: {}", String::from_utf8_lossy(&output.stderr)))?;
    if output.status.code() != Some(report.exit_status().into()) {
        return Err(format!("audit {args}: {}, and the report says {}", output.status, report.verdict()).into());
    }
    Ok(report)
}

fn with<'a>(report: &'a Report, subject: &'a str, rule: &'a str) -> impl Iterator<Item = &'a Finding> {
    report.findings.iter().filter(move |finding| finding.subject == subject && finding.rule == rule)
}

/// The rule was asked of the subject and held.
fn holds(report: &Report, subject: &str, rule: &str) -> Result<(), Failed> {
    let found: Vec<_> = with(report, subject, rule).collect();
    let passed = !found.is_empty() && found.iter().all(|finding| finding.check.verdict == Verdict::Pass);
    if passed { Ok(()) } else { Err(format!("{rule} of {subject} does not hold: {found:?}").into()) }
}

/// The rule failed for the subject, with this severity, and each of these is named.
fn fails(report: &Report, subject: &str, rule: &str, severity: Severity, named: &[&str]) -> Result<(), Failed> {
    let failed = with(report, subject, rule).find(|finding| finding.check.verdict == Verdict::Fail);
    let failed = failed.ok_or_else(|| format!("{rule} of {subject} did not fail: {}", report.verdict()))?;
    let missing: Vec<_> = named.iter().filter(|text| !failed.check.seen.contains(**text)).collect();
    if missing.is_empty() && failed.severity == severity && !failed.remedy.is_empty() {
        return Ok(());
    }
    Err(format!("{rule} of {subject} does not name {missing:?}: {failed:?}").into())
}

fn status(report: &Report, wanted: u8) -> Result<(), Failed> {
    let bad = || report.findings.iter().filter(|finding| finding.check.verdict == Verdict::Fail);
    match report.exit_status() == wanted {
        true => Ok(()),
        false => {
            let failed: Vec<String> = bad().map(|f| format!("{} {}: {}", f.subject, f.rule, f.check.seen)).collect();
            Err(format!("status {} instead of {wanted}: {failed:?}", report.exit_status()).into())
        }
    }
}

fn host(report: &Report) -> &str {
    report.subjects.last().map_or("", |subject| &subject.name)
}

fn whole() -> Result<(), Failed> {
    script("for vm in a b; do want 0 run -d -q --require enforced --name cli-au-$vm -- sleep 1000; done")?;
    let report = audit("")?;
    seen_whole(&report)?;
    for vm in ["cli-au-a", "cli-au-b"] {
        for rule in
            ["seccomp.ours", "namespaces.exclusive", "selinux.process-label", "uid.exclusive", "leases.neighbours"]
        {
            holds(&report, vm, rule)?;
        }
        for process in report.subjects.iter().filter(|s| s.name == vm).flat_map(|s| &s.processes) {
            complete(process).map_err(|what| format!("{} of {vm}: {what}", process.role))?;
        }
    }
    holds(&report, host(&report), "leases.leftovers")?;
    if report.matrix.vms != ["cli-au-a", "cli-au-b"] {
        return Err(format!("a matrix of {:?}", report.matrix.vms).into());
    }
    for (from, to) in [(0, 1), (1, 0)] {
        for layer in ["selinux", "uid", "namespaces", "cgroup", "landlock", "seccomp", "fds"] {
            keeps(&report, from, to, layer, Verdict::Pass)?;
        }
    }
    let probed = audit("vm cli-au-a --probe")?;
    seen_whole(&probed)?;
    holds(&probed, "cli-au-a", "landlock.probed")
}

/// Nothing but what is for information failed, and no rule lacks an answer.
fn seen_whole(report: &Report) -> Result<(), Failed> {
    let wrong = report.findings.iter().find(|finding| match finding.check.verdict {
        Verdict::Fail => finding.severity > Severity::Info,
        Verdict::Unknown => true,
        _ => false,
    });
    wrong.map_or(Ok(()), |finding| Err(format!("{finding:?}").into()))
}

fn complete(process: &Process) -> Result<(), String> {
    let domain = if process.role == "runner" { ":casemate_runner_t:s0:c" } else { ":casemate_jailer_t:" };
    match &process.label {
        Known::Seen(Some(label)) if label.contains(domain) => {}
        other => return Err(format!("label {other:?}")),
    }
    if process.namespaces.seen().is_none_or(|all| !all.contains_key("mnt")) {
        return Err(format!("namespaces {:?}", process.namespaces));
    }
    let threads = process.threads.seen().ok_or("its threads")?;
    let wanted = if process.role == "runner" { 2 } else { 1 };
    let read = threads.iter().filter(|thread| !thread.kernel);
    let filters: Vec<_> =
        read.map(|thread| thread.filters.seen().map_or(0, |verdicts| verdicts.filters.len())).collect();
    let all = !filters.is_empty() && filters.iter().all(|count| *count == wanted);
    if all { Ok(()) } else { Err(format!("filters that were read, thread by thread: {filters:?}")) }
}

fn keeps(report: &Report, from: usize, to: usize, layer: &str, wanted: Verdict) -> Result<(), Failed> {
    let answer = report.matrix.cell(from, to).and_then(|cell| cell.layers.get(layer));
    match answer {
        Some((verdict, _)) if *verdict == wanted => Ok(()),
        _ => Err(format!("{layer} between {:?}, {from} to {to}: {answer:?}", report.matrix.vms).into()),
    }
}

fn broken() -> Result<(), Failed> {
    collision()?;
    shared()?;
    dead()
}

/// A file at rest, a container's process and a user's, at the categories of a sandbox that runs.
fn collision() -> Result<(), Failed> {
    matrix::push_asleep()?;
    let said = script(&format!(
        r#"{TOOLS}
truncate -s 8M /var/lib/au.img; chcon -t var_lib_t /var/lib/au.img; stat -c %C /var/lib/au.img > /tmp/au.before
bare cli-au-x --disk id=data,path=/var/lib/au.img,format=raw
pair=$(stat -c %C /var/lib/au.img | sed 's/.*:s0://')
mkdir -p /var/lib/libvirt/images; echo > {STRAY}; chcon -t svirt_image_t -l s0:$pair {STRAY} || fail "chcon"
cp /usr/bin/sleep /var/lib/au-sleep; chcon -t container_file_t /var/lib/au-sleep
runcon system_u:system_r:container_t:s0:$pair /var/lib/au-sleep 1000 >/dev/null 2>&1 </dev/null & one=$!
runcon -l s0:$pair sleep 1000 >/dev/null 2>&1 </dev/null & two=$!
echo $one $two > /tmp/au.pids
eventually grep -q :container_t:s0:$pair /proc/$one/attr/current; eventually grep -q :s0:$pair /proc/$two/attr/current
echo "OTHERS $one $two"
"#
    ))?;
    let others = said.lines().find_map(|line| line.strip_prefix("OTHERS ")).ok_or("no processes")?;
    let pids: Vec<String> = others.split_whitespace().map(|pid| format!("process {pid} (")).collect();
    let mut named = vec![STRAY, "svirt_image_t", "container_t", "restorecon -F"];
    named.extend(pids.iter().map(String::as_str));
    let report = audit("")?;
    for subject in ["cli-au-x", host(&report)] {
        fails(&report, subject, "leases.neighbours", Severity::High, &named)?;
    }
    status(&report, 3)?;
    l1::sh(None, &format!("kill $(cat /tmp/au.pids); rm -f {STRAY} /var/lib/au-sleep /tmp/au.pids"))?;
    Ok(())
}

/// Two at one level that was asked for, beside the other, which no longer collides.
fn shared() -> Result<(), Failed> {
    let level = "--selinux-level s0:c50,c51 --selinux-level-shared";
    script(&format!("{TOOLS}for vm in y z; do bare cli-au-$vm {level}; done"))?;
    let report = audit("")?;
    for (vm, other) in [("cli-au-y", "cli-au-z"), ("cli-au-z", "cli-au-y")] {
        let named = [other, "s0:c50,c51", "level_shared"];
        fails(&report, vm, "selinux.level-exclusive", Severity::Critical, &named)?;
    }
    holds(&report, "cli-au-x", "selinux.level-exclusive")?;
    for subject in ["cli-au-x", "cli-au-y", "cli-au-z", host(&report)] {
        holds(&report, subject, "leases.neighbours")?;
    }
    status(&report, 4)?;
    if report.matrix.vms != ["cli-au-x", "cli-au-y", "cli-au-z"] {
        return Err(format!("a matrix of {:?}", report.matrix.vms).into());
    }
    keeps(&report, 1, 2, "selinux", Verdict::Fail)?;
    keeps(&report, 1, 2, "uid", Verdict::Pass)?;
    keeps(&report, 0, 1, "selinux", Verdict::Pass)
}

/// Warden and runner killed at once: leases, label and record are nobody's until `casemate repair`.
fn dead() -> Result<(), Failed> {
    script(&format!(
        "{TOOLS}want 0 casemate rm -f cli-au-y cli-au-z\nkill -9 $(ours cli-au-x) || fail kill\n\
         eventually sh -c 'casemate ps | grep -q lost'"
    ))?;
    let report = audit("")?;
    let named = ["lease mcs/c", "lease uid/", "which is dead", "sandbox cli-au-x is dead", "casemate repair"];
    for subject in ["cli-au-x", host(&report)] {
        fails(&report, subject, "leases.leftovers", Severity::Medium, &named)?;
    }
    script(
        "stat -c %C /var/lib/au.img | grep -q :casemate_image_t:s0:c || fail 'no label was left'\n\
         want 0 casemate repair\nstat -c %C /var/lib/au.img | cmp - /tmp/au.before || fail 'the label is not back'",
    )?;
    let report = audit("")?;
    holds(&report, host(&report), "leases.leftovers")?;
    status(&report, 0)
}

/// The controls without a layer run with the caller's rights, in the caller's directory. In a mount namespace of their own:
/// should they change the root, it is not L1's.
fn root_stays() -> Result<(), Failed> {
    matrix::push_asleep()?;
    script(&format!(
        r#"{TOOLS}
bare cli-au-r
cat > steps <<'END'
cd /tmp; [ $(stat -c %d /tmp) != $(stat -c %d /) ] || {{ echo "/tmp is no mount point"; exit 1; }}
root() {{ stat -c %d:%i /; ls /; }}
was=$(root)
same() {{ [ "$(root)" = "$was" ] || {{ echo "$* changed the root: $(root)"; exit 1; }}; }}
casemate selftest > au.told; code=$?
same selftest
[ $code = 0 ] && grep -q seccomp au.told || {{ cat au.told; exit 1; }}
# As the client starts it: in the caller's domain, where the controls are without SELinux too.
runcon $(id -Z) /usr/libexec/casemate/casemate-jailer probe cli-au-r --part others > au.told; code=$?
same probe
[ $code = 0 ] && grep -q '"control":"positive"' au.told || {{ cat au.told; exit 1; }}
END
want 0 unshare -m --propagation private sh steps
"#
    ))
    .map(drop)
}
