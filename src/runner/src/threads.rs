//! The threads of the machine: each confines itself before it meets anything of the guest's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use casemate_confine::seccomp::Filter;
use casemate_plan::RolePlan;
use casemate_vm::{Ending, Gate, Vcpu};
use casemate_wire::record::Finding;

use crate::attest;

use crate::error::{Error, Step};
use crate::exits::{Bell, Exits};
use crate::io::IoThread;
use crate::machine::Machine;
use crate::mailbox::{Mail, Mailbox};
use crate::restart::{Restart, Turns};
use crate::serial_tap::Ear;

const STEP: &str = "start the threads";
/// vCPU and io threads keep no large values on their stacks.
const STACK: usize = 256 << 10;

/// The running threads, as the main thread sees them.
pub struct Threads {
    pub gate: Arc<Gate>,
    pub mailbox: Arc<Mailbox>,
    pub ear: Ear,
    /// What each thread found of its own filter.
    pub findings: Vec<Finding>,
    /// How to start the guest again, where the plan allows a reboot.
    pub restart: Option<Restart>,
    io: JoinHandle<Option<String>>,
    pub bell: Arc<Bell>,
    done: Arc<AtomicBool>,
}

impl Threads {
    /// Stops the guest and lets the io thread finish. Returns the first fault of a device.
    pub fn finish(self) -> Option<String> {
        self.gate.stop();
        self.done.store(true, Ordering::SeqCst);
        self.bell.wake();
        self.io.join().ok().flatten()
    }
}

/// Starts all threads; returns when each of them has confined itself. No vCPU runs yet: the gate is closed.
pub fn start(plan: &RolePlan, machine: Machine) -> Result<Threads, Error> {
    let Machine { vcpus, gate, exits, devices, epoll, mailbox, ear, restart } = machine;
    let (sender, receiver) = mpsc::channel();
    let done = Arc::new(AtomicBool::new(false));
    let bell = Arc::clone(&exits.bell);
    let io = IoThread { devices, epoll, bell: Arc::clone(&bell), done: Arc::clone(&done) };
    io.prepare()?;
    let expected = vcpus.len() + 1;
    let io = spawn("io", Filter::RunnerIo, plan.seccomp, &sender, move || io.run())?;
    for mut vcpu in vcpus {
        let (gate, exits, mailbox) = (Arc::clone(&gate), Arc::clone(&exits), Arc::clone(&mailbox));
        let turns = restart.as_ref().map(|restart| Arc::clone(&restart.turns));
        spawn(&format!("vcpu{}", vcpu.index()), Filter::RunnerVcpu, plan.seccomp, &sender, move || {
            run_vcpu(&mut vcpu, &exits, &gate, &mailbox, turns.as_deref());
        })?;
    }
    let mut findings = Vec::with_capacity(expected);
    for _ in 0..expected {
        findings.extend(receiver.recv().step(STEP)??);
    }
    Ok(Threads { gate, mailbox, ear, findings, restart, io, bell, done })
}

/// The life of a vCPU thread: once, or again after each reset.
fn run_vcpu(vcpu: &mut Vcpu, exits: &Exits, gate: &Gate, mailbox: &Mailbox, turns: Option<&Turns>) {
    let mut turn = 0;
    loop {
        let ending = vcpu.run(exits, gate);
        if ending != Ending::Recalled {
            mailbox.post(Mail::Ended(ending));
        }
        let (Some(turns), Ending::Reset(_) | Ending::Recalled) = (turns, ending) else { return };
        let again = vcpu.rewind().and_then(|()| {
            turn = turns.arrive(turn);
            vcpu.place()
        });
        if let Err(error) = again {
            mailbox.post(Mail::Broken(Error::new("restart the guest", &error).to_string()));
            return;
        }
    }
}

/// Spawns a thread that installs its filter, says so, and only then runs its body.
fn spawn<T: Default + Send + 'static>(
    name: &str,
    filter: Filter,
    confine: bool,
    report: &mpsc::Sender<Result<Option<Finding>, Error>>,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    let (report, thread) = (report.clone(), name.to_owned());
    let confined = move || {
        let outcome = if confine { attest::confine_thread(&thread, filter).map(Some) } else { Ok(None) };
        let proceed = outcome.is_ok();
        // The receiver is gone only when the start has failed elsewhere.
        let told = report.send(outcome).is_ok();
        drop(report);
        if proceed && told { body() } else { T::default() }
    };
    std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(confined).step(STEP)
}
