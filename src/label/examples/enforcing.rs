//! The room's acceptance on a host that enforces: run as casemate-jailer in casemate_jailer_t
//! (the testbed tier does that), it goes through a start and an end with the payload of
//! `tests/testbed/payload` in place of the runner, and prints one line for each check.
//!
//! Usage: enforcing RUNNER WORK_DIR   where WORK_DIR holds a.raw, b.raw and kernel

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use casemate_label as label;
use label::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Default)]
struct Tally {
    failed: usize,
}

impl Tally {
    fn check(&mut self, name: &str, holds: bool, detail: impl std::fmt::Display) {
        if holds {
            println!("ok {name}");
        } else {
            self.failed += 1;
            println!("FAILED {name}: {detail}");
        }
    }

    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, found: T, wanted: T) {
        self.check(name, found == wanted, format!("{found:?} is not {wanted:?}"));
    }
}

struct Bench {
    runner: PathBuf,
    proc: VerifiedProc,
    own: Context,
    profile: Profile,
}

/// A payload under a runner's label, its answers, and the socket it waits on.
struct Run {
    child: Child,
    answers: BufReader<UnixStream>,
}

impl Run {
    /// Until the payload speaks. Its label is its own only then: spawn returns when exec lets go of the parent's memory,
    /// a moment before the new credentials are in force.
    fn until_waiting(&mut self) -> Result<()> {
        let mut line = String::new();
        while self.answers.read_line(&mut line)? != 0 {
            if line.starts_with("waiting") {
                return Ok(());
            }
            line.clear();
        }
        Err("the payload ended before it waited".into())
    }

    fn answers(mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut line = String::new();
        while self.answers.read_line(&mut line)? != 0 {
            lines.push(line.trim_end().to_owned());
            line.clear();
        }
        self.child.wait()?;
        Ok(lines)
    }
}

impl Bench {
    /// Starts the payload with `label` (or none), reading `input` and writing `output`.
    fn start(&self, label: Option<&Context>, input: &File, output: &File, attempts: &[&str]) -> Result<Run> {
        // the socket carries the runner's label, or MCS would keep it from the runner
        self.proc.set_socket_label(label)?;
        let pair = UnixStream::pair();
        self.proc.set_socket_label(None)?;
        let (ours, theirs) = pair?;
        if let Some(l) = label {
            self.proc.set_exec_label(l)?;
        }
        let child = Command::new(&self.runner)
            .args(attempts)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(input.try_clone()?))
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn();
        self.proc.clear_exec_label()?;
        Ok(Run { child: child?, answers: BufReader::new(ours) })
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

fn facts(t: &mut Tally) {
    let facts = probe();
    println!("# {}", serde_json::to_string(&facts).unwrap_or_default());
    t.equal("facts: enforcing", facts.mode, SelinuxMode::Enforcing);
    t.equal("facts: every type is there", facts.missing_types.clone(), Vec::new());
    t.check("facts: the runner's type is MCS-constrained", facts.mcs_constrained, format!("{:?}", facts.checks));
    t.check("facts: the domain is not permissive", !facts.domain_permissive, "it is");
    t.check("facts: nnp_transition is allowed", facts.nnp_transition, "it is not");
    t.check("facts: separates", facts.separates(), format!("{:?}", facts.shortcomings()));
    let svirt = label::mode::probe_profile(&Profile::svirt());
    println!("# {}", serde_json::to_string(&svirt).unwrap_or_default());
    t.check("facts: libvirt's family separates too", svirt.separates(), format!("{:?}", svirt.shortcomings()));
}

fn separation(t: &mut Tally, b: &Bench, dir: &Path, a: CategoryPair, c: CategoryPair) -> Result<()> {
    let (mine, other, content) =
        (open(&dir.join("a.raw"))?, open(&dir.join("b.raw"))?, File::open(dir.join("kernel"))?);
    let runner = b.profile.runner_label(&b.own, a);
    let has = |lines: &[String], line: &str| lines.iter().any(|l| l == line);

    let lines = b.start(Some(&runner), &mine, &mine, &["thread"])?.answers()?;
    for want in ["stdin file", "stdout file", "read ok 1", "write ok", "thread ok"] {
        t.check(&format!("own image: {want}"), has(&lines, want), format!("{lines:?}"));
    }
    let lines = b.start(Some(&runner), &content, &mine, &[])?.answers()?;
    t.check("content: read ok 1", has(&lines, "read ok 1"), format!("{lines:?}"));

    let lines = b.start(Some(&runner), &other, &other, &[])?.answers()?;
    // the kernel closed both fds at exec, and so the C library ended the payload
    t.equal("another pair's image does not arrive", lines, Vec::new());
    let writable = open(&dir.join("kernel"))?;
    let lines = b.start(Some(&runner), &writable, &writable, &[])?.answers()?;
    t.equal("content opened for writing does not arrive", lines, Vec::new());

    // the other runner does reach b.raw: it is the pair and nothing else that decides
    let twin = b.profile.runner_label(&b.own, c);
    let lines = b.start(Some(&twin), &other, &other, &[])?.answers()?;
    t.check("the other runner reads its own image", has(&lines, "read ok 1"), format!("{lines:?}"));

    let null = open(Path::new("/dev/null"))?;
    let attempts = [
        "open=/etc/passwd",
        "open=/dev/null",
        "open=/dev/kvm",
        "open=/usr/libexec/casemate",
        "list=/",
        "create=/tmp/x",
        "connect=/run/casemate/x.sock",
        "tcp=127.0.0.1:1",
        "udp",
        "exec=/bin/true",
    ];
    let lines = b.start(Some(&runner), &null, &null, &attempts)?.answers()?;
    for attempt in attempts {
        t.check(
            &format!("runner: {attempt} is EACCES"),
            has(&lines, &format!("{attempt} errno 13")),
            format!("{lines:?}"),
        );
    }
    Ok(())
}

fn transition(t: &mut Tally, b: &Bench, dir: &Path, a: CategoryPair) -> Result<()> {
    let mine = open(&dir.join("a.raw"))?;
    let runner = b.profile.runner_label(&b.own, a);
    let mut run = b.start(Some(&runner), &mine, &mine, &["wait"])?;
    run.until_waiting()?;
    let found = b.proc.label_of(run.child.id())?;
    t.equal("the runner's label seen from outside", found, runner.clone());
    t.check(
        "nobody else is in reach of the pair",
        others_in_reach(a, &CategorySet::ALL, &[run.child.id()]).is_empty(),
        "somebody is",
    );
    t.check(
        "the runner itself is found by its level",
        others_in_reach(a, &CategorySet::ALL, &[]).iter().any(|(pid, _)| *pid == run.child.id()),
        "it is not",
    );
    t.check(
        "a running pair is in the live levels",
        InUse::survey(&Sources::host()).in_reach_of(&a.set()).next().is_some(),
        "it is not",
    );
    let Run { mut child, answers } = run;
    drop(answers);
    child.wait()?;

    let unlabelled = b.start(None, &mine, &mine, &[]);
    t.check("exec of the runner without a label is refused", unlabelled.is_err(), "it ran");
    let unknown: Context = b.own.with_type("no_such_t")?;
    t.check("a label the policy does not know is refused", b.proc.set_exec_label(&unknown).is_err(), "it was set");
    let elsewhere = b.own.with_type("unconfined_t")?.with_level(a.level());
    let run = b.start(Some(&elsewhere), &mine, &mine, &[]);
    t.check("the jailer cannot become unconfined_t", run.is_err(), "it did");
    Ok(())
}

fn life(t: &mut Tally, b: &Bench, dir: &Path, run_dir: &Path) -> Result<()> {
    let relabeler = Relabeler::new(b.profile.clone());
    let ledger = Ledger::open(run_dir)?;
    let live = InUse::survey(&Sources::host());
    let names = ["a.raw", "b.raw", "kernel"];
    let read = |name: &str| -> Result<Option<Context>> {
        let f = File::open(dir.join(name))?;
        Ok(relabeler.label_of(f.as_fd(), &dir.join(name))?)
    };
    let before: Vec<_> = names.iter().map(|n| read(n)).collect::<Result<_>>()?;
    println!("# before: {before:?}");

    let mut sandboxes = Vec::new();
    for (sandbox, image) in [("one", "a.raw"), ("two", "b.raw")] {
        let vm = run_dir.join(sandbox);
        fs::create_dir(&vm)?;
        let owner = Owner::of_self(sandbox)?;
        let mut journal = Journal::create(File::open(&vm)?.as_fd(), &vm, owner.clone())?;
        let (pair, lease) = ledger.lease_pair(&owner, &CategorySet::ALL, &live)?;
        journal.intend(Intent::Lease { lease: lease.key })?;
        let mut labels = Transaction::new(&relabeler, &mut journal, pair);
        labels.label(open(&dir.join(image))?.as_fd(), &dir.join(image), LabelClass::Exclusive)?;
        labels.label(File::open(dir.join("kernel"))?.as_fd(), &dir.join("kernel"), LabelClass::Content)?;
        labels.commit();
        let want = LabelClass::Exclusive.target(&b.profile, pair);
        t.equal(&format!("{image} has its pair"), read(image)?, Some(want));
        sandboxes.push((journal, pair));
    }
    let content = LabelClass::Content.target(&b.profile, sandboxes[0].1);
    t.equal("the kernel is content", read("kernel")?, Some(content));
    let refused = relabeler.acquire(
        open(&dir.join("a.raw"))?.as_fd(),
        &dir.join("a.raw"),
        LabelClass::Exclusive,
        sandboxes[1].1,
        &Owner::of_self("three")?,
        &mut |_| Ok(()),
    );
    t.check("a third sandbox is refused a.raw", matches!(refused, Err(RelabelError::InUse { .. })), "it got it");

    separation(t, b, dir, sandboxes[0].1, sandboxes[1].1)?;
    transition(t, b, dir, sandboxes[0].1)?;

    let undoer = Undoer { ledger: &ledger, relabeler: &relabeler };
    let (mut first, _) = sandboxes.remove(0);
    for report in undoer.undo(&mut first)? {
        println!("# undo one: {} {:?}", report.what, report.outcome);
    }
    t.equal("a.raw is as before", read("a.raw")?, before[0].clone());
    t.check("the kernel is still content: two uses it", read("kernel")? != before[2], "it was restored early");
    let (mut second, _) = sandboxes.remove(0);
    for report in undoer.undo(&mut second)? {
        println!("# undo two: {} {:?}", report.what, report.outcome);
    }
    let after: Vec<_> = names.iter().map(|n| read(n)).collect::<Result<_>>()?;
    t.equal("every label is as before", after, before);
    for name in names {
        let f = File::open(dir.join(name))?;
        t.check(
            &format!("{name} has no record left"),
            relabeler.record_of(f.as_fd(), &dir.join(name))?.is_none(),
            "it has",
        );
    }
    t.equal("no lease is left", ledger.list()?.len(), 0);
    Ok(())
}

/// The last source of a restore: our label, whose original nobody knows any more.
fn fallback(t: &mut Tally, b: &Bench, dir: &Path) -> Result<()> {
    let relabeler = Relabeler::new(b.profile.clone());
    let path = dir.join("a.raw");
    let file = open(&path)?;
    let now = relabeler.label_of(file.as_fd(), &path)?;
    let ours = LabelClass::Content.target(&b.profile, CategoryPair::try_from((1, 2))?);
    rustix::fs::fsetxattr(&file, "security.selinux", ours.to_string().as_bytes(), rustix::fs::XattrFlags::empty())?;
    let restored = relabeler.restore_to(file.as_fd(), &path, None, &ours)?;
    println!("# file_contexts: {restored:?}");
    t.check(
        "file_contexts names a label when none is remembered",
        matches!(restored, Restored::To(_)),
        format!("{restored:?}"),
    );
    if let Some(now) = now {
        rustix::fs::fsetxattr(&file, "security.selinux", now.to_string().as_bytes(), rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

fn no_new_privs(t: &mut Tally, b: &Bench, dir: &Path) -> Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let null = open(Path::new("/dev/null"))?;
    let runner = b.profile.runner_label(&b.own, CategoryPair::try_from((1, 2))?);
    let mut run = b.start(Some(&runner), &null, &null, &["wait"])?;
    run.until_waiting()?;
    t.equal("the transition holds under no_new_privs", b.proc.label_of(run.child.id())?, runner);
    let Run { mut child, answers } = run;
    drop((answers, dir));
    child.wait()?;
    Ok(())
}

fn run() -> Result<usize> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(runner), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: enforcing RUNNER WORK_DIR".into());
    };
    let mut t = Tally::default();
    facts(&mut t);
    let proc = VerifiedProc::mount_private()?;
    let own = proc.own_label()?;
    t.equal("entered the jailer's domain by its label", own.type_(), "casemate_jailer_t");
    let b = Bench { runner, proc, own, profile: Profile::casemate() };
    let run_dir = PathBuf::from(format!("/run/casemate/acceptance.{}", std::process::id()));
    fs::create_dir_all(&run_dir)?;
    let done = life(&mut t, &b, &dir, &run_dir)
        .and_then(|()| fallback(&mut t, &b, &dir))
        .and_then(|()| no_new_privs(&mut t, &b, &dir));
    let _ = fs::remove_dir_all(&run_dir);
    done?;
    Ok(t.failed)
}

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            println!("FAILED to the end: {e}");
            ExitCode::FAILURE
        }
    }
}
