//! What clone3 costs by namespace on this host: medians until the parent returns, until the child
//! runs, and until it is reaped. Needs root. `cargo run --release -p casemate-sys --example clone-costs`

use casemate_sys::process::{CloneOptions, Cloned, Namespaces, clone3, exit_now};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    use Namespaces as N;
    let all = N::MOUNT.and(N::PID).and(N::NET).and(N::IPC).and(N::UTS).and(N::CGROUP);
    let no_net = N::MOUNT.and(N::PID).and(N::IPC).and(N::UTS).and(N::CGROUP);
    let sets = [
        ("none", N::NONE),
        ("mount", N::MOUNT),
        ("pid", N::PID),
        ("net", N::NET),
        ("ipc", N::IPC),
        ("uts", N::UTS),
        ("cgroup", N::CGROUP),
        ("all but net", no_net),
        ("all six", all),
    ];
    println!("median microseconds: parent returns / child ended and reaped");
    for (name, namespaces) in sets {
        let (mut returned, mut reaped) = (Vec::new(), Vec::new());
        for _ in 0..101 {
            let start = Instant::now();
            match clone3(&CloneOptions { namespaces, cgroup: None })? {
                Cloned::Child => exit_now(0),
                Cloned::Parent(child) => {
                    returned.push(start.elapsed().as_nanos() / 1000);
                    child.wait()?;
                    reaped.push(start.elapsed().as_nanos() / 1000);
                }
            }
        }
        returned.sort_unstable();
        reaped.sort_unstable();
        println!("{:>6} / {:>6}  {name}", returned[50], reaped[50]);
    }
    Ok(())
}
