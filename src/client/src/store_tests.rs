//! Hostile files in the run directory, and records that do not check out.

use super::*;
use casemate_spec::Posture;
use casemate_wire::record::{ExitCause, ExitReport};
use std::os::unix::fs::symlink;

pub fn record(name: &str) -> SandboxRecord {
    SandboxRecord {
        version: record::VERSION,
        name: name.into(),
        phase: Phase::Running,
        posture: Posture::Hardened,
        allow_reduced: None,
        warnings: vec![],
        created: 1,
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().into(),
        command: vec!["true".into()],
        detached: true,
        cpus: 1,
        memory: 1 << 28,
        warden: own(),
        runner: None,
        uid: 10_000_000,
        categories: None,
        label: None,
        profile: None,
        labels: vec![],
        selinux: None,
        findings: vec![],
        cgroups: vec![],
        landlock_abi: 7,
        descriptors: vec![],
        rlimits: std::collections::BTreeMap::new(),
        timings: vec![],
        exit: None,
    }
}

fn own() -> ProcessName {
    let pid = std::process::id();
    ProcessName { pid, start_time: start_time(pid).unwrap() }
}

struct Run(tempfile::TempDir);

impl Run {
    fn new() -> Run {
        Run(tempfile::tempdir().unwrap())
    }

    fn dirs(&self) -> Dirs {
        Dirs { run: self.0.path().into(), state: self.0.path().into() }
    }

    fn put(&self, name: &str, file: &str, bytes: &[u8]) {
        let dir = self.0.path().join("vms").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(file), bytes).unwrap();
    }

    fn put_record(&self, name: &str, file: &str, record: &SandboxRecord) {
        self.put(name, file, &serde_json::to_vec(record).unwrap());
    }

    fn problem(&self, name: &str) -> String {
        match load(&self.dirs(), name) {
            Err(error) => error.to_string(),
            Ok(entry) => panic!("accepted: {entry:?}"),
        }
    }
}

#[test]
fn no_run_directory_is_an_empty_list() {
    let run = Run::new();
    let listing = list(&run.dirs()).unwrap();
    assert!(listing.entries.is_empty() && listing.damaged.is_empty());
    assert!(matches!(load(&run.dirs(), "a"), Err(Error::NoSandbox(_))));
}

#[test]
fn the_warden_decides_whether_a_record_lives() {
    let run = Run::new();
    run.put_record("alive", "state.json", &record("alive"));
    let mut lost = record("lost");
    lost.warden.start_time += 1;
    run.put_record("lost", "state.json", &lost);
    let mut rebooted = record("rebooted");
    rebooted.boot_id = "0".into();
    run.put_record("rebooted", "state.json", &rebooted);
    let mut ended = record("ended");
    run.put_record("ended", "state.json", &ended);
    ended.phase = Phase::Stopped;
    ended.exit = Some(ExitReport { cause: ExitCause::PowerOff, status: Some(3), detail: None });
    run.put_record("ended", "exit.json", &ended);
    let listing = list(&run.dirs()).unwrap();
    let seen: Vec<_> = listing.entries.iter().map(|e| (e.record.name.as_str(), e.status)).collect();
    assert_eq!(
        seen,
        [("alive", Status::Running), ("ended", Status::Exited), ("lost", Status::Lost), ("rebooted", Status::Lost)]
    );
}

#[test]
fn hostile_files_are_named_and_do_not_hide_the_others() {
    let run = Run::new();
    run.put_record("good", "state.json", &record("good"));
    run.put("giant", "state.json", &vec![b' '; MAX_RECORD as usize + 1]);
    run.put("empty", "state.json", b"");
    run.put("half", "state.json", br#"{"version":1"#);
    run.put("bin", "state.json", &[0xff; 64]);
    run.put_record("other", "state.json", &record("good"));
    let mut version = record("version");
    version.version = 99;
    run.put_record("version", "state.json", &version);
    run.put("link", "x", b"");
    symlink("/etc/passwd", run.0.path().join("vms/link/state.json")).unwrap();
    run.put("fifo", "x", b"");
    rustix::fs::mknodat(CWD, run.0.path().join("vms/fifo/state.json"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    run.put("nothing", "journal", b"");
    run.put("\u{1b}[31mX", "state.json", b"");
    symlink("good", run.0.path().join("vms/aliased")).unwrap();
    let mut extra = serde_json::to_value(record("extra")).unwrap();
    extra["surprise"] = 1.into();
    run.put("extra", "state.json", &serde_json::to_vec(&extra).unwrap());
    let listing = list(&run.dirs()).unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert_eq!(listing.entries[0].record.name, "good");
    assert_eq!(listing.damaged.len(), 12, "{:?}", listing.damaged);
    for damaged in &listing.damaged {
        assert!(!damaged.name.contains('\u{1b}') && !damaged.problem.contains('\u{1b}'), "{damaged:?}");
        assert!(damaged.modified.is_some(), "however its name is shown, {damaged:?}");
    }
    assert!(run.problem("giant").contains("larger than"));
    assert!(run.problem("other").contains("names another sandbox"));
    assert!(run.problem("extra").contains("surprise"));
    assert!(run.problem("nothing").contains("being started"));
}

#[test]
fn names_cannot_leave_the_directory() {
    let run = Run::new();
    run.put_record("a", "state.json", &record("a"));
    for name in ["..", ".", "a/../a", "/etc", "", "a\0"] {
        assert!(matches!(load(&run.dirs(), name), Err(Error::BadName(_))), "{name:?}");
    }
}
