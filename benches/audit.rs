//! Audit of live VMs: how long it takes for 10, 50 and 200 of them, beside a mere reading of the status of their threads.

use std::time::Instant;

use casemate_audit::observe::{LiveVm, Observer, Survey};
use casemate_audit::profile::Profile;
use casemate_audit::subject::{Known, Subject};
use casemate_audit::{Around, judge};
use casemate_tests::guest;
use casemate_wire::record::SandboxRecord;

use crate::jail::{AnyError, Bench, Launch};
use crate::table::{Samples, Table};

const COUNTS: [usize; 3] = [10, 50, 200];
const RUNS: usize = 5;

pub fn live(bench: &mut Bench, csv: &mut String) -> Result<(), AnyError> {
    let kernel = bench.run_dir.join("halt");
    std::fs::write(&kernel, guest::pvh_elf(guest::halt))?;
    let columns = ["observe", "judge, matrix", "as JSON", "per VM", "labels verb", "status files alone"];
    let title = format!("Audit of live VMs, ms: median (least..most) of {RUNS}; per VM: observe and judge");
    let mut table = Table::new(title, &columns, 2);
    let (mut launches, mut records): (Vec<Launch>, Vec<SandboxRecord>) = (Vec::new(), Vec::new());
    for count in COUNTS {
        while launches.len() < count {
            let mut launch = bench.launch(&kernel)?;
            records.push(launch.started()?);
            launches.push(launch);
        }
        let mut cells = vec![Samples::default(); columns.len()];
        for _ in 0..RUNS {
            once(bench, &records, &mut cells)?;
        }
        table.row(format!("{count} VMs"), cells.into_iter().map(Some).collect());
    }
    for mut launch in launches {
        drop(launch.channel);
        launch.child.wait()?;
        bench.forget(&launch.name)?;
    }
    table.show(csv);
    Ok(())
}

fn once(bench: &Bench, records: &[SandboxRecord], cells: &mut [Samples]) -> Result<(), AnyError> {
    let [observe, judged, json, each, labels, status] = cells else { return Err("six columns".into()) };
    let begin = Instant::now();
    let observer = Observer::new()?;
    let survey = Known::Seen(Survey::default());
    let see = |record: &SandboxRecord| -> Subject {
        let directory = bench.run_dir.join("vms").join(&record.name);
        observer.vm(&LiveVm { record, phase: "running", directory: &directory, landlock: None }, &survey)
    };
    let subjects: Vec<Subject> = records.iter().map(see).collect();
    observe.push_ms(begin.elapsed());
    if subjects.iter().any(|vm| vm.processes.iter().any(|process| process.threads.seen().is_none())) {
        return Err("a VM was not seen: the figure would be another".into());
    }
    let middle = Instant::now();
    let report = judge(subjects, &Profile::default(), &Around::default());
    judged.push_ms(middle.elapsed());
    each.push(begin.elapsed().as_secs_f64() * 1e3 / records.len() as f64);
    let middle = Instant::now();
    let text = serde_json::to_vec(&report)?;
    json.push_ms(middle.elapsed());
    if report.matrix.vms.len() != records.len() || text.is_empty() {
        return Err("the matrix lacks VMs".into());
    }
    let middle = Instant::now();
    let mut command = std::process::Command::new(bench.programs.join("casemate-jailer"));
    command.args(["labels", "--json", "--run-dir"]).arg(&bench.run_dir).arg("--state-dir").arg(&bench.run_dir);
    if !command.output()?.status.success() {
        return Err("casemate-jailer labels failed".into());
    }
    labels.push_ms(middle.elapsed());
    let middle = Instant::now();
    records.iter().try_for_each(baseline)?;
    status.push_ms(middle.elapsed());
    Ok(())
}

/// /proc/PID/task/TID/status of every thread of both roles, read whole.
fn baseline(record: &SandboxRecord) -> Result<(), AnyError> {
    for pid in record.runner.iter().chain([&record.warden]).map(|process| process.pid) {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            std::fs::read(task?.path().join("status"))?;
        }
    }
    Ok(())
}
