//! The kills of `casemate_tests::crash` for a host that enforces: run in the testbed by tests/testbed/crash.rs.
//!
//! crash-driver lines FIRST | calls STRIDE | repair STRIDE | reboot     with TMPDIR on a file system that keeps labels, and
//! CASEMATE_TEST_BIN where the programs are.

use std::process::ExitCode;

use casemate_tests::crash::Site;
use libtest_mimic::Failed;

fn run() -> Result<String, Failed> {
    let mut args = std::env::args().skip(1);
    let what = args.next().ok_or("what to kill is not said")?;
    let stride = args.next().map_or(Ok(1), |n| n.parse())?;
    let mut site = Site::new()?;
    match what.as_str() {
        "lines" => site.each_line(stride, 2),
        "calls" => site.each_call(stride),
        "repair" => site.each_call_of_repair(stride),
        "reboot" => site.reboot(),
        other => Err(format!("{other} is not known").into()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(told) => {
            println!("held: {told}");
            ExitCode::SUCCESS
        }
        Err(failed) => {
            println!("FAILED: {}", failed.message().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}
