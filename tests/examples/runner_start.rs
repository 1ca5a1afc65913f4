//! Times the start of the runner in the rig: spawn to attestation, Go to end of the tiny guest; and its memory.

use std::time::{Duration, Instant};

use casemate_tests::guest;
use casemate_tests::rig::Rig;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(40);
    let (mut starts, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let elf = guest::pvh_elf(|a| {
            guest::print(a, b"A")?;
            guest::power_off(a)
        });
        let begin = Instant::now();
        let mut vm = Rig::new(elf).start().map_err(|e| format!("{e:?}"))?;
        let attested = Instant::now();
        let _report = vm.run_to_end().map_err(|e| format!("{e:?}"))?;
        starts.push(attested - begin);
        runs.push(attested.elapsed());
    }
    println!("spawn (with the rig's launcher) -> attested {:?}; Go -> gone {:?}", median(starts), median(runs));
    let vm = Rig::new(guest::pvh_elf(guest::spin)).start().map_err(|e| format!("{e:?}"))?;
    let status = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", vm.pid()))?;
    status
        .lines()
        .filter(|l| l.starts_with("Rss") || l.starts_with("Pss:") || l.starts_with("Anon"))
        .for_each(|l| println!("{l}"));
    if std::env::args().nth(2).is_some() {
        println!("{}", std::fs::read_to_string(format!("/proc/{}/smaps", vm.pid()))?);
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
