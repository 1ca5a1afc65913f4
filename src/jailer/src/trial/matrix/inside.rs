//! `try NAME`: attempts from inside a running sandbox's confinement, made by a jailer in its own domain. The matrix sets its
//! stage in the caller's domain, where objects of every kind can be made; only the jailer's domain may enter the runner's.
//!
//! Trust: the caller is root and may start sandboxes; what it sends is data of bounded size, and the probe that acts on it
//! holds no right but the sandbox's. The label is the record's, never the caller's.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use casemate_confine::objects::Handle;
use casemate_confine::trial::{Attempt, MAX_TRIAL, Outcome};
use casemate_plan::{HostConfig, Layer};
use casemate_spec::SandboxId;
use casemate_sys::exec::{FIRST_FD, Image, replace_process};
use casemate_sys::process::errno::EBADF;
use casemate_sys::process::{CloneOptions, Cloned, Exit, clone3, exit_now};
use casemate_sys::{exec, fds, memfd, rustix, seqpacket};
use serde::{Deserialize, Serialize};

use super::super::attack::living;
use super::super::jail::{EVERY, FIRST_GIVEN, Jail};
use super::columns::pair;
use super::post::Post;
use crate::child::program;
use crate::error::StepFailed;
use crate::store::RunDir;

const STEP: &str = "try from inside a sandbox";
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 1 << 20;

/// What is asked of `try`. Descriptor 3 is this, sealed; 4 a socket, on which the jailer sends the end of another, made by
/// itself with the sandbox's label, that objects are to be handed over on; those that the attacker is to inherit follow.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// SELinux alone, or all layers.
    pub alone: bool,
    pub attempts: Vec<Attempt>,
    /// How many descriptors follow.
    pub given: usize,
}

/// The number of a trial's post in the probe, and of its first inherited object.
pub const POST: i32 = FIRST_GIVEN;
pub const FIRST_OBJECT: i32 = FIRST_GIVEN + 1;

/// Answers a request, as the verb.
pub fn answer(config: &HostConfig, name: &SandboxId) -> Result<Vec<Outcome>, StepFailed> {
    let failed = |e: &dyn std::error::Error| StepFailed::because(STEP, crate::error::sentence(e));
    let mut open = exec::inherit_open().map_err(|e| failed(&e))?.into_iter();
    let (Some(request), Some(channel)) = (open.next(), open.next()) else {
        return Err(StepFailed::because(STEP, "descriptors 3 and 4 must be given; `casemate attack --matrix` does"));
    };
    let bytes = memfd::read_sealed(&request, MAX_TRIAL).map_err(|e| failed(&e))?;
    let mut request: Request = serde_json::from_slice(&bytes).map_err(|e| failed(&e))?;
    let count = i32::try_from(request.given).ok().filter(|count| *count <= 128);
    let Some(count) = count else {
        return Err(StepFailed::because(STEP, "too many descriptors are to be inherited"));
    };
    let attacker = living(&RunDir::open(&config.run_dir, true)?, name)?;
    let label = attacker.label.as_deref().map(str::parse).transpose().map_err(|e| failed(&e))?;
    let landlock_abi = attacker.landlock_abi;
    let (ours, post) = pair(label.as_ref())?;
    seqpacket::send(&channel, b"post", &[ours.as_fd()]).map_err(|e| failed(&e))?;
    drop((ours, channel));
    let jail = Jail { uid: attacker.uid, label, landlock_abi, cgroup: None, rlimits: Vec::new() };
    // Our own exec may have taken some already; the rest keeps its numbers.
    let given: Vec<OwnedFd> = open.collect();
    let first = FIRST_FD + 2;
    let arrived = |number: i32| given.iter().find(|fd| fd.as_raw_fd() == first + (number - FIRST_OBJECT));
    let table: Vec<&OwnedFd> = (0..count).map(|index| arrived(FIRST_OBJECT + index).unwrap_or(&post)).collect();
    let lost: Vec<bool> =
        request.attempts.iter().map(|attempt| is_lost(attempt, |number| arrived(number).is_some())).collect();
    let given: Vec<&OwnedFd> = [&post].into_iter().chain(table).collect();
    let layers = if request.alone { &[Layer::Selinux][..] } else { EVERY };
    let mut outcomes = jail.try_with_post(layers, &std::mem::take(&mut request.attempts), &given, POST)?;
    for (outcome, _) in outcomes.iter_mut().zip(lost).filter(|(_, lost)| *lost) {
        *outcome = Outcome::Denied { errno: EBADF };
    }
    Ok(outcomes)
}

fn is_lost(attempt: &Attempt, arrived: impl Fn(i32) -> bool) -> bool {
    matches!(attempt, Attempt::Try { at: Handle::Inherited(number), .. } if !arrived(*number))
}

/// Starts `casemate-jailer try NAME` in the jailer's own domain, and takes its answer.
pub fn ask(
    config: &HostConfig,
    name: &SandboxId,
    request: &Request,
    given: &[OwnedFd],
) -> Result<Vec<Outcome>, StepFailed> {
    let failed = |e: &dyn std::error::Error| StepFailed::because(STEP, crate::error::sentence(e));
    let bytes = serde_json::to_vec(request).map_err(|e| failed(&e))?;
    let mut table = vec![memfd::sealed("request", &bytes).map_err(|e| failed(&e))?];
    let (channel, its) = seqpacket::pair().map_err(|e| failed(&e))?;
    table.push(its);
    for fd in given {
        table.push(fd.try_clone().map_err(|e| failed(&e))?);
    }
    let image = Image { program: program("casemate-jailer")?, argv: argv(config, name)?, env: Vec::new(), fds: table };
    let (out, theirs) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(&std::io::Error::from(e)))?;
    match clone3(&CloneOptions::default()).map_err(|e| failed(&e))? {
        Cloned::Child => {
            // Its answer and its complaints, both to us.
            for number in [1, 2] {
                if fds::redirect_stdio(&theirs, number).is_err() {
                    exit_now(3);
                }
            }
            let _failed = replace_process(image);
            exit_now(4)
        }
        Cloned::Parent(child) => {
            drop((theirs, image));
            let mut word = [0; 8];
            let received = seqpacket::receive(&channel, &mut word).map_err(|e| failed(&e))?;
            // Nothing came: it has ended, and says why below.
            let ours = received.fds.into_iter().next();
            let _post = ours.map(|ours| Post::start(given, (ours, None))).transpose()?;
            let mut said = Vec::new();
            let read = std::fs::File::from(out).take(MAX_ANSWER).read_to_end(&mut said);
            let ended = child.wait().map_err(|e| failed(&e))?;
            read.map_err(|e| failed(&e))?;
            outcomes(ended, &said, request)
        }
    }
}

/// `casemate-jailer try NAME`, for the same directories as ours.
fn argv(config: &HostConfig, name: &SandboxId) -> Result<Vec<CString>, StepFailed> {
    let words: [&OsStr; 7] = [
        "casemate-jailer".as_ref(),
        "try".as_ref(),
        name.as_str().as_ref(),
        "--run-dir".as_ref(),
        config.run_dir.as_ref(),
        "--state-dir".as_ref(),
        config.state_dir.as_ref(),
    ];
    let word = |word: &OsStr| CString::new(word.as_bytes());
    words.into_iter().map(word).collect::<Result<_, _>>().map_err(|e| StepFailed::because(STEP, e.to_string()))
}

/// One outcome for each attempt, or what it said instead.
fn outcomes(ended: Exit, said: &[u8], request: &Request) -> Result<Vec<Outcome>, StepFailed> {
    if ended != Exit::Exited(0) {
        let said = String::from_utf8_lossy(said);
        return Err(StepFailed::because(STEP, format!("the jailer ended with {ended}: {}", said.trim())));
    }
    let outcomes: Vec<Outcome> =
        serde_json::from_slice(said).map_err(|e| StepFailed::because(STEP, crate::error::sentence(&e)))?;
    if outcomes.len() == request.attempts.len() {
        return Ok(outcomes);
    }
    Err(StepFailed::because(STEP, "an answer has the wrong length"))
}
