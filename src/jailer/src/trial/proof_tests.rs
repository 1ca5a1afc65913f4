//! What a layer's controls are worth: a weak layer, one that another one stands in for, and one that says nothing.

use super::*;
use casemate_sys::process::errno::EACCES;

const NO: Outcome = Outcome::Denied { errno: EACCES };
const KILLED: Outcome = Outcome::Killed { signal: SIGSYS };

fn tested(layer: &str, control: &'static str, ok: bool) -> Tested {
    Tested { layer: layer.into(), control, attempt: String::new(), outcome: String::new(), ok }
}

fn present(report: &Selftest) -> Vec<(String, bool)> {
    standing(report).into_iter().map(|l| (l.layer, l.present && l.ok)).collect()
}

#[test]
fn a_control_that_is_denied_without_the_layer_proves_nothing_of_it() {
    assert!(decides(Layer::Landlock, &NO, &Outcome::Allowed));
    assert!(decides(Layer::Landlock, &NO, &Outcome::Reached { errno: 22 }));
    assert!(!decides(Layer::Landlock, &NO, &NO));
    assert!(!decides(Layer::Landlock, &NO, &Outcome::Denied { errno: 1 }), "another error is no proof either");
    assert!(!decides(Layer::Landlock, &NO, &Outcome::Unclear { why: "x".into() }));
    // A kernel without 32-bit emulation stops the call itself, by another signal.
    let fault = Outcome::Killed { signal: 11 };
    assert!(!decides(Layer::Seccomp, &fault, &fault));
    assert!(decides(Layer::Seccomp, &KILLED, &Outcome::Denied { errno: 38 }), "SIGSYS is a filter's");
    assert!(!decides(Layer::Seccomp, &KILLED, &KILLED), "but a filter of ours or of somebody around us?");
    assert!(!decides(Layer::Uid, &KILLED, &NO));
    // What is not denied is to be reported, whatever it is without.
    assert!(decides(Layer::Landlock, &Outcome::Allowed, &NO));
}

#[test]
fn a_layer_that_did_not_deny_what_it_must_is_not_there() {
    let controls = vec![
        tested("landlock", "negative", true),
        tested("landlock", "positive", true),
        tested("uid", "negative", true),
        tested("uid", "negative", false),
        tested("mounts", "positive", true),
        tested("seccomp", "negative", true),
        tested("seccomp", "positive", false),
    ];
    let of = |layer: &str| Unproven {
        layer: layer.into(),
        attempt: String::new(),
        outcome: String::new(),
        without: String::new(),
    };
    let unproven = vec![of("mounts"), of("landlock"), of("cgroup")];
    let report = Selftest { controls, unproven, ..Selftest::default() };
    let expected = [("landlock", true), ("uid", false), ("mounts", false), ("seccomp", false), ("cgroup", false)];
    assert_eq!(present(&report), expected.map(|(layer, present)| (layer.to_owned(), present)));
}
