//! What a layer's controls show: tried with the layer alone and with none, so that it is this layer that denies.

use std::os::fd::OwnedFd;

use casemate_confine::controls::{self, Ground};
use casemate_confine::trial::{Attempt, Outcome};
use casemate_plan::Layer;
use casemate_sys::seccomp::SIGSYS;
use serde::Serialize;

use super::jail::Jail;
use super::word;

/// The report.
#[derive(Debug, Default, Serialize)]
pub struct Selftest {
    /// Every layer, and whether it is there: its controls are as they must be, and one of them at least shows that this
    /// layer and no other denies.
    pub layers: Vec<Standing>,
    /// Layers that this host does not have, with the reason: not tested, not claimed.
    pub absent: Vec<Absent>,
    pub controls: Vec<Tested>,
    /// Negative controls that are denied without the layer as well: they say nothing of it.
    pub unproven: Vec<Unproven>,
}

#[derive(Debug, Serialize)]
pub struct Standing {
    pub layer: String,
    pub present: bool,
    /// Negative controls that only this layer denies.
    pub proven: usize,
    pub ok: bool,
}

#[derive(Debug, Serialize)]
pub struct Unproven {
    pub layer: String,
    pub attempt: String,
    pub outcome: String,
    pub without: String,
}

#[derive(Debug, Serialize)]
pub struct Absent {
    pub layer: String,
    pub why: String,
}

#[derive(Debug, Serialize)]
pub struct Tested {
    pub layer: String,
    /// `negative`: must be denied; `positive`: must be allowed.
    pub control: &'static str,
    pub attempt: String,
    pub outcome: String,
    pub ok: bool,
}

/// One layer alone: its negative controls, each beside the same attempt without any layer, so that it is this layer that
/// denies; and that what was inherited still works. A layer that cannot be applied is a control that failed, and the
/// other layers are tested all the same.
pub fn plain(layer: Layer, jail: &Jail<'_>, ground: &Ground, own: &OwnedFd, report: &mut Selftest) {
    let controls = [controls::negative(layer, ground), controls::positive(ground)].concat();
    let attempts: Vec<Attempt> = controls.iter().map(|c| c.attempt.clone()).collect();
    let tried = |layers: &[Layer]| jail.try_all(layers, &attempts, &[own]);
    let (with, without) = match tried(&[layer]).and_then(|with| Ok((with, tried(&[])?))) {
        Ok(both) => both,
        Err(failed) => {
            report.controls.push(Tested {
                layer: layer.to_string(),
                control: "negative",
                attempt: "apply the layer, and read it back".into(),
                outcome: failed.to_string(),
                ok: false,
            });
            return;
        }
    };
    for ((control, with), without) in controls.into_iter().zip(with).zip(without) {
        let layer_ = layer.to_string();
        let negative = control.want == controls::Want::Denied;
        if negative && !decides(layer, &with, &without) {
            let (outcome, without) = (word(&with), word(&without));
            // Denied with and without: another one's doing, or the kernel has no such call at all.
            report.unproven.push(Unproven { layer: layer_, attempt: control.what, outcome, without });
            continue;
        }
        report.controls.push(Tested {
            layer: layer_,
            control: if negative { "negative" } else { "positive" },
            attempt: control.what,
            outcome: word(&with),
            ok: if negative { with.is_denied() } else { with == Outcome::Allowed },
        });
    }
}

/// Does this control tell something of the layer? Not if the attempt is stopped without it as well; but a SIGSYS is
/// always a filter's.
fn decides(layer: Layer, with: &Outcome, without: &Outcome) -> bool {
    let by_filter = |outcome: &Outcome| matches!(outcome, Outcome::Killed { signal: SIGSYS });
    let stopped = |outcome: &Outcome| outcome.is_denied() || matches!(outcome, Outcome::Unclear { .. });
    !with.is_denied() || !stopped(without) || (layer == Layer::Seccomp && by_filter(with) && !by_filter(without))
}

/// The last thing: which layers are there.
pub fn finish(report: &mut Selftest) {
    report.layers = standing(report);
}

/// A layer is there if all of its controls hold and one negative one at least is its own doing.
fn standing(report: &Selftest) -> Vec<Standing> {
    let mut layers: Vec<Standing> = Vec::new();
    for control in &report.controls {
        let at = match layers.iter().position(|l| l.layer == control.layer) {
            Some(at) => at,
            None => {
                layers.push(Standing { layer: control.layer.clone(), present: true, proven: 0, ok: true });
                layers.len() - 1
            }
        };
        layers[at].proven += usize::from(control.control == "negative" && control.ok);
        layers[at].present &= control.ok;
    }
    for unproven in &report.unproven {
        if !layers.iter().any(|l| l.layer == unproven.layer) {
            layers.push(Standing { layer: unproven.layer.clone(), present: false, proven: 0, ok: false });
        }
    }
    for layer in &mut layers {
        layer.present &= layer.proven > 0;
        layer.ok = layer.present;
    }
    layers
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
