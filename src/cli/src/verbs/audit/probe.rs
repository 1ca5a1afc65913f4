//! `audit vm --probe`: what the jailer's probe saw of Landlock, right by right.

use casemate_audit::subject::Probe;
use casemate_client::jailer::Jailer;
use casemate_client::label;
use serde::Deserialize;

use crate::failure::{Failure, Result};
use crate::output::Context;

/// The jailer's answer, as far as it is of use here.
#[derive(Deserialize)]
struct Answer {
    rights: Vec<Right>,
}

#[derive(Deserialize)]
struct Right {
    right: String,
    alone: String,
    all: String,
    without: String,
    ok: bool,
}

/// Each right that the sandbox's ruleset handles, tried in a second domain made by the same code and of the same ABI.
pub fn rights(context: &Context, name: &str) -> Result<Vec<Probe>> {
    let jailer = Jailer::locate(&context.dirs)?;
    // SELinux confines the jailer too: Landlock is alone only in a domain that may do everything.
    let answer = match label::is_active() {
        true => jailer.ask_in_own_domain(&["probe", name, "--part", "others"])?,
        false => jailer.ask(&["probe", name], None)?,
    };
    let unknown = |e| Failure::new(format!("the jailer's answer to 'probe' is not known here: {e}"));
    let answer: Answer = serde_json::from_value(answer.json).map_err(unknown)?;
    Ok(answer.rights.into_iter().map(told).collect())
}

fn told(right: Right) -> Probe {
    let Right { right, alone, all, without, ok } = right;
    // The attempt must have been possible without the layer, or it shows nothing.
    let beside = if without == "allowed" { String::new() } else { format!("; without any layer {without}") };
    Probe { attempt: format!("use {right}"), outcome: format!("{alone} (with all layers {all}{beside})"), ok }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_was_impossible_anyway_is_said_to_be() {
        let right = |without: &str, ok| {
            let text = |t: &str| t.to_owned();
            told(Right {
                right: text("fs.refer"),
                alone: text("EACCES"),
                all: text("SIGSYS"),
                without: text(without),
                ok,
            })
        };
        assert_eq!(right("allowed", true).outcome, "EACCES (with all layers SIGSYS)");
        let other = right("EACCES", false);
        assert!(other.outcome.ends_with("without any layer EACCES)") && !other.ok);
    }
}
