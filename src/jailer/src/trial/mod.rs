//! Trials in a real jail: `selftest` (each layer alone denies what it must and allows what it must) and `attack` (code
//! with one sandbox's confinement against another). The probe is executed by the same steps as a runner.

mod attack;
mod jail;
mod matrix;
mod outside;
mod probe;
mod proof;
mod scratch;
mod selftest;

pub use attack::attack;
pub use matrix::{answer, matrix};
pub use probe::probe;
pub use selftest::selftest;

use casemate_confine::trial::Outcome;
use casemate_sys::process::errno_name;

/// Which layers a call is to try. Where SELinux confines the jailer, the other layers are not alone there: the client
/// asks for them in its own domain, in a call of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    Selinux,
    Others,
}

/// An outcome in a word: the errno or signal that said no, or `allowed`.
fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Denied { errno } => errno_name(*errno),
        Outcome::Killed { signal: 31 } => "SIGSYS".into(),
        Outcome::Killed { signal } => format!("signal {signal}"),
        // Reached: the call failed on its harmless arguments, after the permission was given.
        Outcome::Allowed | Outcome::Reached { .. } => "allowed".into(),
        Outcome::Unclear { why } => format!("unclear: {why}"),
    }
}
