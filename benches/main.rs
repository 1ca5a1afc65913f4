//! `make bench`: starts, bursts, memory, the cost of each step and of allocation, on this machine's KVM with a tiny guest.
//!
//! `bench [--runs N] [--csv FILE] [start] [burst] [chains] [memory] [svirt] [audit] [policy]`; all without a name. Needs root.
//! Absolute times hold for one machine and hour; what counts is the ratio of rows of one run (docs/performance.md).
#![forbid(unsafe_code)]

mod audit;
mod chains;
mod jail;
mod memory;
mod policy;
mod svirt;
mod table;

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use casemate_tests::guest;
use casemate_tests::rig::Rig;
use casemate_wire::record::SandboxRecord;
use jail::{AnyError, Bench, Took};
use table::{Samples, Table};

const MEMORY_KIB: u64 = 128 << 10;

struct Options {
    runs: usize,
    csv: Option<PathBuf>,
    sections: Vec<String>,
}

fn main() -> Result<(), AnyError> {
    // On tmpfs, as /run is on every real host.
    let dir = PathBuf::from(format!("/dev/shm/casemate-bench-{}", std::process::id()));
    let mut bench = Bench::new(programs()?, &dir)?;
    let options = options()?;
    make_private(&dir)?;
    make_private(&bench.run_dir.join("vms"))?;
    std::fs::write(&bench.kernel, tiny())?;
    let mut csv = String::from("table,row,column,runs,median,least,most\n");
    let outcome = sections(&mut bench, &options, &mut csv);
    std::fs::remove_dir_all(&dir)?;
    outcome?;
    if let Some(path) = &options.csv {
        std::fs::write(path, csv)?;
    }
    Ok(())
}

fn sections(bench: &mut Bench, options: &Options, csv: &mut String) -> Result<(), AnyError> {
    let wanted = |name: &str| options.sections.is_empty() || options.sections.iter().any(|s| s == name);
    if wanted("start") {
        let records = starts(bench, options.runs, csv)?;
        steps(&records, csv);
    }
    if wanted("burst") {
        bursts(bench, csv)?;
    }
    if wanted("chains") {
        chains::chains(&bench.run_dir.clone(), options.runs, csv)?;
    }
    if wanted("memory") {
        idle(bench, csv)?;
    }
    if wanted("audit") {
        audit::live(bench, csv)?;
    }
    if wanted("policy") {
        policy::questions(csv)?;
    }
    if wanted("svirt") {
        svirt::allocation(&bench.run_dir.join("svirt"), options.runs, csv)?;
    }
    Ok(())
}

/// One byte, then power off.
fn tiny() -> Vec<u8> {
    guest::pvh_elf(|a| {
        guest::print(a, b"A")?;
        guest::power_off(a)
    })
}

#[derive(Default)]
struct Row {
    output: Samples,
    gone: Samples,
    cpu: Samples,
}

impl Row {
    fn add(&mut self, took: Took) {
        if let Some(output) = took.output {
            self.output.push_ms(output);
        }
        self.gone.push_ms(took.gone);
        self.cpu.push_ms(took.cpu);
    }

    fn cells(self) -> Vec<Option<Samples>> {
        vec![Some(self.output), Some(self.gone), Some(self.cpu)]
    }
}

/// Rows are taken in turns, so that a busy moment of the machine hits all of them.
fn starts(bench: &mut Bench, runs: usize, csv: &mut String) -> Result<Vec<SandboxRecord>, AnyError> {
    let (mut nothing, mut floor, mut jailed, mut rig) =
        (Row::default(), Row::default(), Row::default(), Row::default());
    let log = bench.run_dir.join("floor.log");
    let mut records = Vec::new();
    for _ in 0..runs {
        nothing.add(bench.plain(Command::new("/bin/true"), None)?);
        let mut command = Command::new(bench.programs.join("casemate-bench-floor"));
        command.arg(&bench.kernel).arg(&log);
        floor.add(bench.plain(command, Some(&log))?);
        rig.add(unjailed()?);
        let (took, record) = bench.jailed()?;
        jailed.add(took);
        records.push(record);
    }
    let title = format!("Single start, ms: median (least..most) of {runs}, rows in turns");
    let mut table = Table::new(title, &["first output", "gone", "CPU"], 1);
    table.row("/bin/true", nothing.cells());
    table.row("floor: our vm room alone, no irqchip, no confinement", floor.cells());
    table.row("runner alone: no jailer, but its filters (tests' rig, fork)", rig.cells());
    table.row("casemate-jailer run: all layers, cgroups", jailed.cells());
    table.show(csv);
    Ok(records)
}

/// The runner as the tests start it; its output is not watched.
fn unjailed() -> Result<Took, AnyError> {
    let cpu = jail::children_cpu()?;
    let begin = Instant::now();
    let text = |failed: libtest_mimic::Failed| failed.message().unwrap_or("failed").to_owned();
    let mut vm = Rig::new(tiny()).with(|vm| vm.memory = 128 << 20).start().map_err(text)?;
    vm.run_to_end().map_err(text)?;
    drop(vm);
    Ok(Took { output: None, gone: begin.elapsed(), cpu: jail::children_cpu()? - cpu })
}

fn bursts(bench: &mut Bench, csv: &mut String) -> Result<(), AnyError> {
    let mut table =
        Table::new("50 starts, two in flight: VMs per second, median (least..most) of 5", &["per second"], 0);
    let mut rate = Samples::default();
    for _ in 0..5 {
        let begin = Instant::now();
        let mut flying = VecDeque::new();
        let mut names = Vec::new();
        for _ in 0..50 {
            if flying.len() == 2 {
                end_of_one(&mut flying)?;
            }
            let launch = bench.launch(&bench.kernel.clone())?;
            names.push(launch.name.clone());
            flying.push_back(launch);
        }
        while !flying.is_empty() {
            end_of_one(&mut flying)?;
        }
        rate.push(50.0 / begin.elapsed().as_secs_f64());
        names.iter().try_for_each(|name| bench.forget(name))?;
    }
    table.row("casemate-jailer run", vec![Some(rate)]);
    table.show(csv);
    Ok(())
}

/// The oldest ends first nearly always; that it might not costs us, not the figure's honesty.
fn end_of_one(flying: &mut VecDeque<jail::Launch>) -> Result<(), AnyError> {
    flying.pop_front().ok_or("nothing flies")?.end()
}

/// Alone, and among ten: PSS falls as processes share the pages of one program file.
fn idle(bench: &mut Bench, csv: &mut String) -> Result<(), AnyError> {
    let kernel = bench.run_dir.join("spin");
    std::fs::write(&kernel, guest::pvh_elf(guest::spin))?;
    let columns = ["RSS", "PSS", "of it private", "peak RSS", "guest RAM touched"];
    let title = "Memory of a paused VM, KiB: RSS and PSS without guest RAM, peak with it";
    let mut table = Table::new(title, &columns, 0);
    for count in [1, 10] {
        let mut launches = (0..count).map(|_| bench.launch(&kernel)).collect::<Result<Vec<_>, _>>()?;
        let records = launches.iter_mut().map(jail::Launch::started).collect::<Result<Vec<_>, _>>()?;
        records.iter().try_for_each(|record| bench.pause(&record.name))?;
        let runners = records.iter().filter_map(|r| r.runner).map(|r| r.pid).collect::<Vec<_>>();
        let wardens = records.iter().map(|r| r.warden.pid).collect::<Vec<_>>();
        for (role, pids) in [("runner", runners), ("warden", wardens)] {
            table.row(format!("{role}, {count} VMs"), memory_of(&pids)?);
        }
        for mut launch in launches {
            drop(launch.channel);
            launch.child.wait()?;
            bench.forget(&launch.name)?;
        }
    }
    table.show(csv);
    Ok(())
}

fn memory_of(pids: &[u32]) -> Result<Vec<Option<Samples>>, AnyError> {
    let mut cells = vec![Samples::default(); 5];
    for pid in pids {
        let is = memory::of(*pid, MEMORY_KIB)?;
        for (cell, value) in cells.iter_mut().zip([is.rss, is.pss, is.private, is.peak, is.guest]) {
            cell.push(value as f64);
        }
    }
    Ok(cells.into_iter().map(Some).collect())
}

/// What the record of each start says of its steps.
fn steps(records: &[SandboxRecord], csv: &mut String) {
    let mut order: Vec<(String, String)> = Vec::new();
    let mut all: BTreeMap<(String, String), Samples> = BTreeMap::new();
    for (record, timing) in records.iter().flat_map(|record| record.timings.iter().map(move |t| (record, t))) {
        let step = timing.step.split("/dev/shm").next().unwrap_or_default().replace(&record.name, "NAME");
        let key = (timing.role.clone(), step.chars().take(64).collect());
        if !all.contains_key(&key) {
            order.push(key.clone());
        }
        all.entry(key).or_default().push(f64::from(timing.micros));
    }
    let mut table = Table::new("Cost of each step, wall-clock us, from the records of these starts", &["us"], 0);
    for (role, step) in order {
        let samples = all.remove(&(role.clone(), step.clone()));
        table.row(format!("{role:8} {step}"), vec![samples]);
    }
    table.show(csv);
}

pub fn make_private(dir: &Path) -> Result<(), AnyError> {
    Ok(std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?)
}

/// Beside this program's own: what `scripts/build` laid out, and the floor.
fn programs() -> Result<PathBuf, AnyError> {
    Ok(std::env::current_exe()?.parent().ok_or("this program is in no directory")?.to_path_buf())
}

fn options() -> Result<Options, AnyError> {
    let mut options = Options { runs: 60, csv: None, sections: Vec::new() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--runs" => options.runs = args.next().ok_or("--runs needs a number")?.parse()?,
            "--csv" => options.csv = Some(args.next().ok_or("--csv needs a file")?.into()),
            "start" | "burst" | "chains" | "memory" | "svirt" | "audit" | "policy" => options.sections.push(arg),
            other => {
                return Err(format!(
                    "{other}? bench [--runs N] [--csv FILE] [start] [burst] [chains] [memory] [svirt] [audit] [policy]"
                )
                .into());
            }
        }
    }
    Ok(options)
}
