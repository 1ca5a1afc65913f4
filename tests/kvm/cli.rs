//! The command line as a user meets it, with tiny guests and the real jailer, runner and KVM below it.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use casemate_sys::rustix::process::{Pid, Signal, kill_process};
use casemate_tests::guest;
use casemate_tests::jail::{Host, PATIENCE};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::jailer::check;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("cli::{name}"), run);
    vec![
        trial("a_bare_guest_in_the_foreground", foreground),
        trial("each_end_has_its_exit_status", ends),
        trial("the_life_of_a_detached_guest", life),
        trial("a_name_has_one_owner", names),
        trial("ctrl_c_ends_a_sandbox_and_leaves_nothing", interrupted),
        trial("a_killed_client_takes_its_sandbox_along", client_killed),
        trial("a_killed_warden_is_lost_and_repaired", warden_killed),
        trial("a_plan_and_a_doctor_touch_nothing", looks_only),
        trial("a_refused_start_leaves_nothing", refused),
    ]
}

/// The command line with this host's directories.
struct Cli {
    host: Host,
}

impl Cli {
    fn new() -> Result<Self, Failed> {
        Ok(Cli { host: Host::new()? })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.host.bin().join("casemate"));
        command.args(args).env("CASEMATE_RUN_DIR", self.host.run_dir());
        command.env("CASEMATE_STATE_DIR", self.host.file("state")).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Result<Output, Failed> {
        Ok(self.command(args).output()?)
    }

    /// Runs it, wants this exit status, gives stdout.
    fn want(&self, code: i32, args: &[&str]) -> Result<String, Failed> {
        let out = self.run(args)?;
        let said = text(&out.stderr);
        check(out.status.code() == Some(code), format!("{args:?}: {} instead of {code}: {said}", out.status))?;
        Ok(text(&out.stdout))
    }

    fn json(&self, args: &[&str]) -> Result<Value, Failed> {
        let out = self.want(0, &[&["--format", "json"], args].concat())?;
        Ok(serde_json::from_str(&out)?)
    }

    fn kernel(&self, name: &str, elf: Vec<u8>) -> Result<String, Failed> {
        let path: PathBuf = self.host.file(name);
        fs::write(&path, elf)?;
        Ok(path.display().to_string())
    }

    /// A guest that never ends.
    fn spinning(&self) -> Result<String, Failed> {
        let elf = guest::pvh_elf(|a| {
            guest::print(a, b"spinning\n")?;
            guest::spin(a)
        });
        self.kernel("spin.elf", elf)
    }

    fn detached(&self, hint: &str) -> Result<String, Failed> {
        let name = self.host.name(hint);
        let kernel = self.spinning()?;
        let said =
            self.want(0, &["run", "-d", "-q", "--name", &name, "--bare", "--memory", "4M", "--kernel", &kernel])?;
        check(said == format!("{name}\n"), format!("a detached run prints the name, not {said:?}"))?;
        Ok(name)
    }

    /// Starts a spinning guest in the foreground and waits until it runs.
    fn started(&self, hint: &str) -> Result<(Child, String), Failed> {
        let name = self.host.name(hint);
        let kernel = self.spinning()?;
        let mut child = self
            .command(&["run", "--rm", "--name", &name, "--bare", "--memory", "4M", "--kernel", &kernel])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut seen = [0; 9];
        child.stdout.as_mut().ok_or("no stdout")?.read_exact(&mut seen)?;
        check(&seen == b"spinning\n", "the console is shown as it grows")?;
        Ok((child, name))
    }

    fn status(&self, name: &str) -> Result<Value, Failed> {
        let listing = self.json(&["ps", "-a"])?;
        let all = listing["sandboxes"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|row| row["name"] == name).map_or(Value::Null, |row| row["status"].clone()))
    }
}

/// A failed test leaves no guest spinning.
impl Drop for Cli {
    fn drop(&mut self) {
        for name in self.host.sandboxes() {
            let state = fs::read(self.host.run_dir().join("vms").join(name).join("state.json")).unwrap_or_default();
            let runner = serde_json::from_slice::<Value>(&state).ok().and_then(|s| s["runner"]["pid"].as_u64());
            if let Some(pid) = runner.and_then(|pid| u32::try_from(pid).ok()) {
                let _ended = signal(pid, Signal::KILL);
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn signal(pid: u32, signal: Signal) -> Result<(), Failed> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no pid")?;
    Ok(kill_process(pid, signal)?)
}

fn eventually(what: &str, mut done: impl FnMut() -> Result<bool, Failed>) -> Result<(), Failed> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if done()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(format!("{what} did not come about").into())
}

fn foreground() -> Result<(), Failed> {
    let cli = Cli::new()?;
    let elf = guest::pvh_elf(|a| {
        guest::print(a, b"A\x1b[31m\n")?;
        guest::power_off(a)
    });
    let kernel = cli.kernel("a.elf", elf)?;
    let name = cli.host.name("fg");
    let out = cli.run(&["run", "--rm", "--name", &name, "--bare", "--memory", "4M", "--kernel", &kernel])?;
    check(out.status.code() == Some(0), text(&out.stderr))?;
    check(out.stdout == b"A\x1b[31m\n", "a pipe gets the bytes as they are")?;
    let said = text(&out.stderr);
    let first = said.lines().next().unwrap_or_default();
    check(first.starts_with(&format!("casemate: {name}: posture ")), format!("the posture comes first: {said}"))?;
    for layer in ["landlock ", "seccomp", "caps none", "uid ", "namespaces"] {
        check(first.contains(layer), format!("{layer} is missing in: {first}"))?;
    }
    cli.host.spotless()
}

type Build = fn(&mut iced_x86::code_asm::CodeAssembler) -> guest::Asm;

fn ends() -> Result<(), Failed> {
    let cli = Cli::new()?;
    let cases: [(&str, Build, i32, &str); 4] = [
        ("off", guest::power_off, 0, ""),
        ("reset", guest::reset, 0, ""),
        ("triple", guest::triple_fault, 125, "triple fault"),
        ("panic", guest::panic, 125, "panicked"),
    ];
    for (hint, build, code, said) in cases {
        let kernel = cli.kernel(hint, guest::pvh_elf(build))?;
        let name = cli.host.name(hint);
        let out = cli.run(&["run", "--rm", "-q", "--name", &name, "--bare", "--memory", "4M", "--kernel", &kernel])?;
        let stderr = text(&out.stderr);
        check(out.status.code() == Some(code), format!("{hint}: {}: {stderr}", out.status))?;
        check(stderr.contains(said), format!("{hint}: {stderr}"))?;
    }
    let kernel = cli.spinning()?;
    let name = cli.host.name("timeout");
    let args =
        ["run", "--rm", "-q", "--name", &name, "--bare", "--memory", "4M", "--timeout", "300ms", "--kernel", &kernel];
    cli.want(124, &args)?;
    cli.host.spotless()
}

fn life() -> Result<(), Failed> {
    let cli = Cli::new()?;
    let name = cli.detached("life")?;
    check(cli.status(&name)? == "running", "it runs")?;
    let shown = cli.json(&["inspect", &name])?;
    let findings = shown["findings"].as_array().cloned().unwrap_or_default();
    check(findings.len() > 20 && findings.iter().all(|f| f["ok"] == true), "the proof stands in inspect")?;
    let page = cli.want(0, &["inspect", &name])?;
    for layer in ["landlock", "seccomp", "capabilities", "namespaces", "mounts", "uid", "rlimits", "fds"] {
        check(page.contains(&format!("\n  {layer} ")), format!("{layer} is missing in: {page}"))?;
    }
    eventually("the console's text", || Ok(cli.want(0, &["logs", "--console", &name])? == "spinning\n"))?;
    cli.want(0, &["inspect", "--attest", &name])?;
    cli.want(125, &["rm", &name])?;
    cli.want(125, &["exec", &name, "--", "true"])?;
    cli.want(0, &["pause", &name])?;
    check(cli.status(&name)? == "paused", "it is paused")?;
    cli.want(125, &["pause", &name])?;
    cli.want(0, &["resume", &name])?;
    cli.want(0, &["kill", &name])?;
    eventually("the end", || Ok(cli.status(&name)? == "exited"))?;
    check(cli.want(0, &["ps", "-q"])?.is_empty(), "ps shows what lives")?;
    check(cli.want(0, &["logs", "--console", "-f", &name])? == "spinning\n", "the log stays")?;
    cli.want(0, &["rm", &name])?;
    cli.want(125, &["inspect", &name])?;
    cli.host.spotless()
}

fn names() -> Result<(), Failed> {
    let cli = Cli::new()?;
    let name = cli.detached("twice")?;
    let kernel = cli.spinning()?;
    let out = cli.run(&["run", "-d", "--name", &name, "--bare", "--memory", "4M", "--kernel", &kernel])?;
    let said = text(&out.stderr);
    check(out.status.code() == Some(125) && said.contains("in use"), said)?;
    check(cli.status(&name)? == "running", "the first one is not touched")?;
    cli.want(0, &["rm", "-f", &name])?;
    cli.want(0, &["rm", "-f", &name])?;
    cli.host.spotless()
}

fn ignored_here() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn interrupted() -> Result<(), Failed> {
    let cli = Cli::new()?;
    // A test that runs in the background of a shell, or under nohup, has these two ignored, and so has its child.
    let ignored = |kind: &Signal| ignored_here() & (1 << (kind.as_raw() - 1)) != 0;
    for kind in [Signal::INT, Signal::TERM, Signal::HUP].into_iter().filter(|kind| !ignored(kind)) {
        let (child, name) = cli.started("int")?;
        signal(child.id(), kind)?;
        let out = child.wait_with_output()?;
        let code = 128 + kind.as_raw();
        check(out.status.code() == Some(code), format!("{kind:?}: {}: {}", out.status, text(&out.stderr)))?;
        check(cli.status(&name)?.is_null(), "--rm holds after a signal too")?;
        cli.host.spotless()?;
    }
    Ok(())
}

fn client_killed() -> Result<(), Failed> {
    let cli = Cli::new()?;
    let (mut child, name) = cli.started("orphan")?;
    child.kill()?;
    child.wait()?;
    eventually("the sandbox's end", || Ok(cli.status(&name)? == "exited"))?;
    let record = cli.json(&["inspect", &name])?;
    check(record["exit"]["cause"] == "client_gone", format!("{}", record["exit"]))?;
    eventually("a clean host", || Ok(cli.host.clean().is_ok()))
}

fn warden_killed() -> Result<(), Failed> {
    let cli = Cli::new()?;
    let name = cli.detached("lost")?;
    let warden = cli.json(&["inspect", &name])?["warden"]["pid"].as_u64().unwrap_or(0);
    signal(u32::try_from(warden)?, Signal::KILL)?;
    eventually("a lost sandbox", || Ok(cli.status(&name)? == "lost"))?;
    let page = cli.want(0, &["ps"])?;
    check(page.contains("casemate repair"), page)?;
    cli.want(125, &["rm", "-f", &name])?;
    let would = cli.want(0, &["repair", "--dry-run"])?;
    check(would.contains("would be repaired") && would.contains("nothing was changed"), would)?;
    let did = cli.want(0, &["repair"])?;
    check(did.contains(&format!("{name}: repaired")) && did.contains("lease"), did)?;
    check(cli.want(0, &["repair"])?.contains("nothing to repair"), "once is enough")?;
    cli.want(0, &["rm", &name])?;
    cli.host.spotless()
}

fn looks_only() -> Result<(), Failed> {
    let cli = Cli::new()?;
    let kernel = cli.spinning()?;
    let before = fs::read_dir(cli.host.file(".")).map(Iterator::count)?;
    let plan = cli.want(0, &["plan", "--bare", "--memory", "4M", "--kernel", &kernel])?;
    check(plan.contains("why:") && plan.contains("exec the runner"), plan)?;
    let plan = cli.json(&["plan", "--bare", "--memory", "4M", "--kernel", &kernel])?;
    check(plan["steps"].as_array().is_some_and(|steps| steps.len() > 20), "the plan as JSON")?;
    let doctor = cli.run(&["doctor", "--format", "json"])?;
    let doctor: Value = serde_json::from_slice(&doctor.stdout)?;
    check(doctor["checks"].as_array().is_some_and(|checks| checks.len() > 8), "the doctor as JSON")?;
    check(fs::read_dir(cli.host.file(".")).map(Iterator::count)? == before, "a file was made")?;
    cli.host.spotless()
}

fn refused() -> Result<(), Failed> {
    let cli = Cli::new()?;
    let garbage = cli.kernel("garbage", b"not a kernel at all".repeat(100))?;
    let name = cli.host.name("no");
    for (args, said) in [
        (&["--kernel", garbage.as_str()][..], "neither an ELF file nor a bzImage"),
        (&["--kernel", "/no/such/kernel"], "/no/such"),
        (&["--kernel", garbage.as_str(), "--disk", "id=a,path=/dev/null,format=raw"], "/dev/null"),
    ] {
        let run = ["run", "--name", &name, "--bare", "--memory", "4M"];
        let out = cli.run(&[&run, args].concat())?;
        let stderr = text(&out.stderr);
        check(out.status.code() == Some(125) && stderr.contains(said), format!("{args:?}: {}: {stderr}", out.status))?;
        cli.host.spotless()?;
    }
    Ok(())
}
