//! Installed filters, read back and judged: a real jail's every thread while its guest counts on, filters of a known
//! child, what the kernel itself takes for a filter, and QEMU's sandbox.

use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_audit::seccomp::{Abi, Action, Cache, RemarkId, Undecided, Verdicts, of_thread, render};
use casemate_audit::subject::Known;
use casemate_confine::seccomp::Filter;
use casemate_sys::process::{self, CloneOptions, Cloned, Exit};
use casemate_sys::seccomp::{Instruction, install};
use casemate_tests::jail::Host;
use casemate_tests::rig::Rig;
use casemate_tests::{guest, soon};
use casemate_wire::record::ExitCause;
use casemate_wire::runner::ToRunner;
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::jailer::{check, name_of};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("audit_seccomp: {name}"), run);
    vec![
        trial("every thread of a jail has the filters of its role, and the guest counts on", jail),
        trial("a runner whose threads have no filter of their own is found out", weakened_runner),
        trial("an auditor that is killed while it reads stops nobody", killed_auditor),
    ]
}

/// This one needs root, not KVM; neither do the cases below, which `confine` runs in processes of their own.
pub fn without_kvm() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("audit_seccomp: {name}"), run);
    let missing = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err();
    if missing {
        eprintln!("QEMU's sandbox skipped: qemu-system-x86_64 is not installed (qemu-system-x86)");
    }
    vec![trial("QEMU's sandbox is judged", qemu).with_ignored_flag(missing)]
}

fn verdicts(pid: u32, tid: u32, cache: &Cache) -> Result<Arc<Verdicts>, Failed> {
    match of_thread(pid, tid, cache) {
        Known::Seen(verdicts) => Ok(verdicts),
        Known::Unseen(why) => Err(format!("thread {tid}: {why}").into()),
    }
}

/// Thread ids and names; those of the kernel's own threads left out.
fn threads(pid: u32) -> Result<Vec<(u32, String)>, Failed> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let tid: u32 = entry.file_name().to_string_lossy().parse()?;
        // One may end meanwhile. kvm-nx-lpage-recovery is a thread of the kernel's.
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        if !name.starts_with("kvm-") {
            found.push((tid, name.trim().to_owned()));
        }
    }
    Ok(found)
}

fn names(verdicts: &Verdicts) -> Vec<&str> {
    verdicts.filters.iter().map(|filter| filter.known.as_deref().unwrap_or("unknown")).collect()
}

/// Letters that a guest prints, each with an exit to the runner.
const COUNT: u32 = 40_000;

fn counting(a: &mut CodeAssembler) -> guest::Asm {
    let mut again = a.create_label();
    a.mov(ebx, COUNT)?;
    a.set_label(&mut again)?;
    guest::out8(a, 0x3f8, b'c')?;
    a.dec(ebx)?;
    a.jnz(again)?;
    guest::power_off(a)
}

fn jail() -> Result<(), Failed> {
    let host = Host::new()?;
    let spec = host.bare("filters", guest::pvh_elf(counting))?;
    // Judged beforehand, so that the guest's time goes into readings.
    let cache = Cache::default();
    for filter in [Filter::RunnerMain, Filter::RunnerIo, Filter::RunnerVcpu] {
        cache.judge(&[filter.program().to_vec(), Filter::JailerExec.program().to_vec()])?;
    }
    cache.judge(&[Filter::Warden.program().to_vec()])?;
    let mut vm = host.start(&spec)?;
    let record = vm.started()?;
    let runner = record.runner.ok_or("no runner in the record")?.pid as u32;
    let mut seen = std::collections::BTreeSet::new();
    let mut reads = 0;
    // Over and over while the guest counts: each reading interrupts its vCPU.
    while reads < 300 {
        let before = reads;
        std::thread::sleep(Duration::from_millis(2));
        for (tid, name) in threads(runner).unwrap_or_default() {
            let wanted = match name.as_str() {
                "io" => "runner.io",
                vcpu if vcpu.starts_with("vcpu") => "runner.vcpu",
                _ => "runner.main",
            };
            let Known::Seen(verdicts) = of_thread(runner, tid, &cache) else { continue };
            let known = names(&verdicts);
            check(known == [wanted, "jailer.exec"], format!("thread {name}: {known:?}"))?;
            let open = verdicts.calls.iter().find(|call| call.name.as_deref().is_some_and(|n| n.starts_with("open")));
            check(open.is_none(), format!("thread {name} may open: {open:?}"))?;
            let other = verdicts.calls.iter().find(|call| call.abi != Abi::X86_64);
            check(other.is_none(), format!("thread {name}: {other:?}"))?;
            seen.insert(wanted);
            reads += 1;
        }
        if reads == 3 {
            let warden = verdicts(vm.pid(), vm.pid(), &cache)?;
            check(names(&warden) == ["warden"], format!("warden: {:?}", names(&warden)))?;
        }
        if reads == before {
            break;
        }
    }
    check(seen.len() == 3 && reads >= 30, format!("{reads} readings of {seen:?}"))?;
    let report = vm.exited()?;
    check(report.cause == ExitCause::PowerOff, format!("{report:?}"))?;
    let dir = host.run_dir().join("vms").join(name_of(&spec));
    let mut console = Vec::new();
    for part in ["console-log.0", "console-log.1"] {
        fs::File::open(dir.join(part))?.read_to_end(&mut console)?;
    }
    let right = console.len() == COUNT as usize && console.iter().all(|byte| *byte == b'c');
    check(right, format!("the guest counted {} of {COUNT}, after {reads} readings", console.len()))?;
    host.clean()
}

fn weakened_runner() -> Result<(), Failed> {
    let cache = Cache::default();
    let running = |filters: bool| -> Result<Vec<(String, Arc<Verdicts>)>, Failed> {
        let mut vm = Rig::new(guest::pvh_elf(guest::spin)).filters(filters).start()?;
        let seen = threads(vm.pid())?.into_iter().map(|(tid, name)| Ok((name, verdicts(vm.pid(), tid, &cache)?)));
        let seen: Result<Vec<_>, Failed> = seen.collect();
        vm.tell(ToRunner::Quit)?;
        vm.end()?;
        seen
    };
    for (name, verdicts) in running(true)? {
        check(verdicts.filters.len() == 2, format!("{name}: {:?}", names(&verdicts)))?;
    }
    let weak = running(false)?;
    check(weak.len() >= 3, format!("{} threads", weak.len()))?;
    for (name, verdicts) in weak {
        check(names(&verdicts) == ["jailer.exec"], format!("{name}: {:?}", names(&verdicts)))?;
        let opens =
            verdicts.remarks.iter().any(|r| r.id == RemarkId::DangerousCall && r.call.as_deref() == Some("openat"));
        check(opens, format!("{name} opens files, and nobody says so: {:?}", verdicts.remarks))?;
    }
    Ok(())
}

/// For the cases, whose errors are texts.
/// Pid of the process whose filters this program reads, over and over, until it is killed.
const READER: &str = "CASEMATE_READ_FILTERS_OF";
/// Kills, and how many of them must have hit a reader that traced a thread.
const KILLS: u32 = 40;
const TRACED: usize = 10;

/// The reader that this process was started for, if it was. It judges nothing, so that it does little but trace.
pub fn case() -> Option<ExitCode> {
    let pid: u32 = std::env::var(READER).ok()?.parse().ok()?;
    loop {
        for (tid, _) in threads(pid).unwrap_or_default() {
            let _gone_or_read = casemate_sys::installed::installed(pid.cast_signed(), tid.cast_signed());
        }
    }
}

fn killed_auditor() -> Result<(), Failed> {
    let mut vm = Rig::new(guest::pvh_elf(counting_forever)).with(|vm| vm.log_bytes = 1 << 16).start()?;
    vm.tell(ToRunner::Go)?;
    let all = threads(vm.pid())?;
    let traced = || -> Result<bool, Failed> {
        Ok(all.iter().map(|(tid, _)| tracer(vm.pid(), *tid)).collect::<Result<Vec<_>, _>>()?.iter().any(|by| *by != 0))
    };
    let mut amid = 0;
    for round in 0..KILLS {
        let mut child =
            Command::new(std::env::current_exe()?).env(READER, vm.pid().to_string()).stdin(Stdio::null()).spawn()?;
        soon(&traced, "the reader traces nobody")?;
        std::thread::sleep(Duration::from_micros(u64::from(round) * 50));
        // It does nothing more, so that what it holds can be looked at, until it is killed.
        signal(&child, Signal::SIGSTOP)?;
        soon(|| Ok(stat(child.id())?.0 == "T"), "the reader does not stop")?;
        amid += usize::from(traced()?);
        child.kill()?;
        child.wait()?;
        soon(|| Ok(!traced()?), "a thread is still traced")?;
        let (_, spent) = stat(vm.pid())?;
        soon(|| Ok(stat(vm.pid())?.1 > spent), "the guest stands still")?;
    }
    check(amid >= TRACED, format!("{amid} of {KILLS} traced a thread when they were killed"))?;
    vm.tell(ToRunner::Quit)?;
    check(vm.end()?.cause == ExitCause::Killed, "the runner did not end as told")
}

fn signal(child: &Child, which: Signal) -> Result<(), Failed> {
    Ok(kill(Pid::from_raw(child.id().try_into()?), which)?)
}

fn counting_forever(a: &mut CodeAssembler) -> guest::Asm {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    guest::out8(a, 0x3f8, b'c')?;
    a.jmp(again)
}

/// Who traces a thread; 0: nobody.
fn tracer(pid: u32, tid: u32) -> Result<u32, Failed> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"))?;
    let field = text.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    Ok(field.ok_or("no TracerPid in status")?.trim().parse()?)
}

/// State, and the clock ticks that its threads have run for: fields 3, 14 and 15 of proc_pid_stat(5).
fn stat(pid: u32) -> Result<(String, u64), Failed> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(") ").ok_or("no name in stat")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let [state, .., user, system] = fields.get(..13).ok_or("stat is short")? else {
        return Err("stat is short".into());
    };
    Ok(((*state).to_owned(), user.parse::<u64>()? + system.parse::<u64>()?))
}

fn told(outcome: Result<(), Failed>) -> Result<(), String> {
    outcome.map_err(|failed| failed.message().unwrap_or_default().to_owned())
}

/// A child under these filters, the last one newest, while `look` looks at it.
fn under<T>(filters: &[&[Instruction]], look: impl FnOnce(u32) -> Result<T, Failed>) -> Result<T, Failed> {
    // The thread that read last may still be on its way out.
    casemate_tests::jail::soon("one thread", process::is_single_threaded)?;
    let (ours, theirs) = casemate_sys::seqpacket::pair()?;
    let child = match process::clone3(&CloneOptions::default())? {
        Cloned::Child => {
            let done = filters.iter().try_for_each(|filter| install(filter)).is_ok();
            // Waiting in read(2), which a filter judges at its entry only.
            let _ = casemate_sys::rustix::io::write(&theirs, if done { b"y" } else { b"n" });
            let _ = casemate_sys::rustix::io::read(&theirs, &mut [0u8; 1]);
            process::exit_now(0)
        }
        Cloned::Parent(child) => child,
    };
    let mut said = [0u8; 1];
    casemate_sys::rustix::io::read(&ours, &mut said)?;
    let seen = if said == *b"y" { look(child.pid() as u32) } else { Err("the filters were refused".into()) };
    child.kill()?;
    child.wait()?;
    seen
}

pub fn read_back() -> Result<(), String> {
    told(read_back_case())
}

fn read_back_case() -> Result<(), Failed> {
    for filter in [Filter::RunnerMain, Filter::RunnerVcpu, Filter::RunnerIo, Filter::JailerExec, Filter::Warden] {
        let cache = Cache::default();
        let stack = [Filter::JailerExec.program(), filter.program()];
        let (live, raw) = under(&stack[usize::from(matches!(filter, Filter::JailerExec | Filter::Warden))..], |pid| {
            let raw = casemate_sys::installed::installed(pid as i32, pid as i32)?;
            Ok((verdicts(pid, pid, &cache)?, raw))
        })?;
        check(raw.first().map(Vec::as_slice) == Some(filter.program()), format!("{}: other bytes", filter.name()))?;
        check(names(&live).first() == Some(&filter.name()), format!("{}: {:?}", filter.name(), names(&live)))?;
        // From the file's program, offline: the same table.
        let offline = Cache::default().judge(&raw)?;
        check(*offline == *live, format!("{}: two tables", filter.name()))?;
    }
    let none = under(&[], |pid| verdicts(pid, pid, &Cache::default()))?;
    check(none.remarks.iter().any(|r| r.id == RemarkId::NoFilter), format!("{:?}", none.remarks))
}

pub fn one_call_more() -> Result<(), String> {
    told(one_call_more_case())
}

fn one_call_more_case() -> Result<(), Failed> {
    let i = |code, jt, jf, k| Instruction { code, jt, jf, k };
    // x86-64 and ptrace: allow; else as runner.vcpu.
    let mut program = vec![i(0x20, 0, 0, 4), i(0x15, 0, 3, 0xc000_003e), i(0x20, 0, 0, 0), i(0x15, 0, 1, 101)];
    program.push(i(0x06, 0, 0, 0x7fff_0000));
    program.extend(Filter::RunnerVcpu.program());
    let seen = under(&[&program], |pid| verdicts(pid, pid, &Cache::default()))?;
    let filter = &seen.filters[0];
    check(filter.known.is_none() && filter.claims.as_deref() == Some("runner.vcpu"), format!("{filter:?}"))?;
    let named = |d: &casemate_audit::seccomp::Difference| {
        d.name.as_deref() == Some("ptrace") && (d.ours, d.theirs) == (Action::KillProcess, Action::Allow)
    };
    check(filter.differences.len() == 1 && filter.differences.iter().all(named), format!("{:?}", filter.differences))
}

/// Numbers that look random and are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

pub fn same_programs() -> Result<(), String> {
    told(same_programs_case())
}

fn same_programs_case() -> Result<(), Failed> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let cache = Cache::default();
    let (mut taken, mut refused) = (0, 0);
    for round in 0..1200 {
        let len = 1 + dice.roll(6) as usize;
        let mut program: Vec<Instruction> = (0..len)
            .map(|_| Instruction {
                // Every class and mode, and some that no class has.
                code: if dice.roll(12) == 0 { dice.roll(0x1_0000) } else { dice.roll(0x100) } as u16,
                jt: dice.roll(4) as u8,
                jf: dice.roll(4) as u8,
                k: if dice.roll(8) == 0 { dice.roll(1 << 32) } else { dice.roll(70) } as u32,
            })
            .collect();
        if round < 256 {
            // Each opcode once, in a program that is right otherwise.
            let first = Instruction { code: 0x02, jt: 0, jf: 0, k: 4 };
            program = vec![first, Instruction { code: round as u16, jt: 0, jf: 0, k: 4 }];
        }
        program.push(Instruction { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 });
        let ended = process::in_child(|| match install(&program) {
            Err(error) if error.errno() == Some(process::errno::EINVAL) => 3,
            // From here on its own filter may refuse whatever it does, its end included.
            _ => 0,
        })?;
        let kernel = ended != Exit::Exited(3);
        let ours = !matches!(cache.judge(std::slice::from_ref(&program)), Err(Undecided::NoFilter(_)));
        check(kernel == ours, format!("the kernel {kernel}, the analyser {ours}: {program:x?}"))?;
        if kernel { taken += 1 } else { refused += 1 }
    }
    check(taken > 50 && refused > 50, format!("{taken} taken, {refused} refused"))
}

/// A process that is ended with the trial.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu() -> Result<(), Failed> {
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    let machine =
        ["-machine", "none", "-display", "none", "-nodefaults", "-S", "-monitor", "none", "-sandbox", sandbox];
    let vm = Ended(Command::new("qemu-system-x86_64").args(machine).stdin(Stdio::null()).spawn()?);
    let pid = vm.0.id();
    let cache = Cache::default();
    casemate_tests::jail::soon("QEMU's filter", || verdicts(pid, pid, &cache).is_ok_and(|v| !v.filters.is_empty()))?;
    let begun = Instant::now();
    let seen = verdicts(pid, pid, &Cache::default())?;
    let took = begun.elapsed();
    eprintln!("QEMU: {} instructions judged in {took:?}", seen.filters[0].instructions);
    let allowed = |abi, name: &str| seen.calls.iter().any(|call| call.abi == abi && call.name.as_deref() == Some(name));
    let has = |id| seen.remarks.iter().any(|remark| remark.id == id);
    let text = render(&seen);
    // A list of what is denied.
    check(has(RemarkId::DefaultAllow), "QEMU allows what nobody listed, and nobody says so")?;
    check(has(RemarkId::UnconditionalIoctl) && has(RemarkId::SocketFamily), &text)?;
    for name in ["read", "ioctl", "openat", "socket", "bpf"] {
        check(allowed(Abi::X86_64, name), format!("{name}: {text}"))?;
    }
    for name in ["execve", "fork", "setuid", "uselib", "reboot", "kexec_load"] {
        check(!allowed(Abi::X86_64, name), format!("{name} is denied by this sandbox: {text}"))?;
    }
    check(!has(RemarkId::NoAbiCheck), &text)?;
    // The same, as a user sees it.
    let host = Host::new()?;
    let audit = |more: &[&str]| {
        let arguments = ["audit", "process", &pid.to_string(), "--calls"].map(str::to_owned);
        Command::new(host.bin().join("casemate")).args(arguments).args(more).output()
    };
    let shown = audit(&[])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    check(shown.contains(&text), format!("--calls shows another table: {shown}"))?;
    let json = audit(&["--format", "json"])?;
    let error = String::from_utf8_lossy(&json.stderr).into_owned();
    check(!json.status.success() && error.contains("--calls is for text"), error)
}
