//! From lines of a log to answers, as a whole.

use super::*;
use crate::policy::tests::policy;

const RUNNER: &str = "uid=10000001 gid=10000001 ses=4294967295 pid=90 comm=\"io\" exe=\"/x/casemate-runner\"";

fn events(lines: &[String]) -> Events {
    let mut events = Events::default();
    for line in lines {
        events.add(Record::of_kernel(format!("audit: {line}").as_bytes()).unwrap());
    }
    events
}

fn known() -> Known {
    let sandbox = Sandbox {
        name: "vm".into(),
        uid: 10_000_001,
        label: Some("system_u:system_r:casemate_runner_t:s0:c1,c2".into()),
        runner: Some(90),
        warden: 89,
        created: 100,
        ended: None,
    };
    Known { sandboxes: vec![sandbox], uids: Some(10_000_000..=10_065_535) }
}

fn ask(lines: &[String]) -> Vec<Denial> {
    denials(&events(lines), &known(), Some(&policy(&[])), &[])
}

fn avc(serial: u32, pid: u32, permission: &str, from: &str, to: &str, class: &str) -> String {
    format!(
        "type=1400 audit(200.000:{serial}): avc:  denied  {{ {permission} }} for  pid={pid} comm=\"io\" path=\"/srv/b.img\" \
         dev=\"sda\" ino=5 scontext=system_u:system_r:{from} tcontext=system_u:object_r:{to} tclass={class} permissive=0"
    )
}

#[test]
fn each_layer_is_named_with_its_rule() {
    let lines = [
        format!("type=1326 audit(200.000:1): auid=0 {RUNNER} sig=31 arch=c000003e syscall=101 compat=0 code=0x80000000"),
        "type=1424 audit(200.000:2): domain=1ab status=allocated mode=enforcing pid=90 uid=10000001 exe=\"/x/casemate-runner\" comm=\"casemate-runner\"".into(),
        "type=1423 audit(200.000:2): domain=1ab blockers=fs.read_file path=\"/etc/shadow\" dev=\"sda\" ino=5".into(),
        avc(3, 90, "write", "casemate_runner_t:s0:c1,c2", "casemate_image_t:s0:c3,c4", "file"),
        avc(4, 90, "open", "casemate_runner_t:s0:c1,c2", "casemate_image_t:s0:c1,c2", "file"),
        format!("type=1300 audit(200.000:5): arch=c000003e syscall=165 success=no exit=-1 a0=0 a1=0 a2=0 a3=0 {RUNNER}"),
        "type=1326 audit(200.000:6): uid=1000 pid=5 comm=\"x\" exe=\"/bin/x\" arch=c000003e syscall=1".into(),
    ];
    let all = ask(&lines);
    let layers: Vec<&str> = all.iter().map(|d| d.layer.as_str()).collect();
    assert_eq!(layers, ["seccomp", "landlock", "selinux", "selinux", "capabilities"], "{all:#?}");
    assert!(all.iter().all(|d| d.who.sandbox.as_deref() == Some("vm") && d.who.role == Role::Runner));
    assert!(all[0].what.starts_with("ptrace ["));
    assert!(all[1].rule.contains("made by casemate-runner, pid 90"));
    assert!(
        all[2].rule.starts_with("categories (MCS): the types allow it; s0:c1,c2 does not dominate s0:c3,c4"),
        "{}",
        all[2].rule
    );
    assert!(all[3].rule.contains("type enforcement: no rule allows casemate_runner_t casemate_image_t (file (open))"));
    assert!(all[3].rule.contains("forbidden for good by (neverallow"));
    assert!(all.iter().all(|d| d.expected == Expected::Attempt && d.remedy.starts_with("nothing")), "{all:#?}");
}

/// Whatever is denied to whomever: a remedy never turns a layer off.
#[test]
fn no_remedy_disables_a_layer() {
    let classes = [
        ("file", "write"),
        ("file", "relabelto"),
        ("process", "signal"),
        ("blk_file", "open"),
        ("unix_stream_socket", "connectto"),
    ];
    let domains = ["casemate_runner_t:s0:c1,c2", "casemate_jailer_t:s0", "admin_t:s0", "init_t:s0"];
    let targets = [
        "casemate_image_t:s0:c3,c4",
        "casemate_content_t:s0",
        "shared_t:s0",
        "casemate_runner_t:s0:c3,c4",
        "gone_t:s0",
    ];
    let mut lines = Vec::new();
    for from in domains {
        for to in targets {
            for (class, permission) in classes {
                lines.push(avc(lines.len() as u32 + 1, 90, permission, from, to, class));
            }
        }
    }
    for syscall in 0..470 {
        for thread in ["io", "vcpu0", "casemate-runner"] {
            let serial = 1000 + lines.len();
            lines.push(format!("type=1326 audit(200.000:{serial}): uid=10000001 pid=90 comm=\"{thread}\" exe=\"/x/casemate-runner\" arch=c000003e syscall={syscall} code=0x80000000"));
        }
    }
    let all = ask(&lines);
    assert!(all.len() > 1000, "{}", all.len());
    for denial in &all {
        let remedy = denial.remedy.to_lowercase();
        for bad in [
            "setenforce",
            "permissive",
            "selinux=0",
            "disable",
            "mlstrust",
            "mcs_unconstrained",
            "seccomp: false",
            "unconfined",
            "typeattributeset mcs",
            "audit2allow",
            "log_only",
            "0x7fff",
        ] {
            assert!(!remedy.contains(bad), "{bad}: {denial:#?}");
        }
        assert!(!denial.remedy.is_empty() && !denial.rule.is_empty() && !denial.why.is_empty());
        // What must be denied is never given a rule.
        if denial.expected == Expected::Attempt {
            assert!(denial.remedy.starts_with("nothing"), "{denial:#?}");
        }
    }
}

#[test]
fn the_policy_is_asked_and_a_change_since_is_said() {
    let found = ask(&[avc(1, 90, "write", "casemate_runner_t:s0:c1,c2", "casemate_image_t:s0:c1,c2", "file")]);
    assert!(found[0].rule.contains("allows it: it was loaded"), "{found:#?}");
    assert_eq!(found[0].expected, Expected::Host);
    // Without any policy it is not guessed.
    let lines = [avc(1, 90, "write", "casemate_runner_t:s0:c1,c2", "casemate_image_t:s0:c3,c4", "file")];
    let blind = denials(&events(&lines), &known(), None, &[]);
    assert!(blind[0].rule.contains("not known") && blind[0].remedy.contains("--policy"), "{blind:#?}");
    // A context that this policy does not have is no panic and no answer.
    let unknown = ask(&[avc(1, 90, "write", "casemate_runner_t:s0:c1,c2", "gone_t:s0", "file")]);
    assert!(unknown[0].rule.contains("gone_t"), "{unknown:#?}");
}

#[test]
fn repeated_attempts_are_one_answer() {
    let line =
        |serial: u32| format!("type=1326 audit(200.000:{serial}): {RUNNER} arch=c000003e syscall=101 code=0x80000000");
    let all = ask(&[line(1), line(2), line(3)]);
    assert_eq!((all.len(), all[0].times, all[0].last.serial), (1, 3, 3));
}

#[test]
fn a_failed_start_is_told_among_the_denials() {
    let failed = FailedStart {
        at: 150,
        name: "vm2".into(),
        pid: 7,
        step: "open disk.root".into(),
        layer: "selinux".into(),
        error: "/x: Permission denied (EACCES)".into(),
    };
    let all = denials(&Events::default(), &known(), None, std::slice::from_ref(&failed));
    assert_eq!((all[0].layer.as_str(), all[0].outcome.as_str()), ("selinux", "denied"));
    assert_eq!(all[0].who.sandbox.as_deref(), Some("vm2"));
}

proptest::proptest! {
    /// Whatever is in a record: an answer or none, never a panic.
    #[test]
    fn no_records_are_a_panic(
        kinds in proptest::collection::vec(proptest::sample::select(vec![1107u16, 1300, 1302, 1326, 1400, 1401, 1423, 1424]), 1..6),
        texts in proptest::collection::vec("[a-z0-9={}:,\"'() ]{0,120}", 6),
        numbers in proptest::collection::vec(proptest::num::u64::ANY, 6),
    ) {
        let mut events = Events::default();
        for ((kind, text), n) in kinds.iter().zip(&texts).zip(&numbers) {
            let line = format!(
                "audit: type={kind} audit(200.000:1): avc:  denied  {{ {text} }} for  pid=90 uid={n} exe=\"/casemate-runner\" \
                 arch=c000003e syscall={n} code={n:x} exit=-13 domain={n:x} blockers={text} scontext={text} tcontext={text} \
                 tclass={text} mode={n:o} ouid={n} ogid={n} name={text} a0={n:x} a1={n:x} a2={n:x} a3={n:x} {text}"
            );
            if let Some(record) = Record::of_kernel(line.as_bytes()) {
                events.add(record);
            }
        }
        let _ = denials(&events, &known(), None, &[]);
    }
}
