//! A plan as text for people.

use std::fmt::Write;

use crate::make::Plan;

/// One line per step with its reason, then descriptors, warnings and blockers.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let name = plan.sandbox.as_deref().unwrap_or("(a new name)");
    let _ = writeln!(out, "sandbox {name}: posture {}", plan.posture);
    if let Some(family) = &plan.family {
        let _ = writeln!(out, "SELinux profile {}: {}", family.name, family.why);
        let _ = writeln!(out, "    runner {}, images {}, content {}", family.runner, family.image, family.content);
    }
    let _ = writeln!(out, "\nsteps");
    for (at, step) in plan.steps.iter().enumerate() {
        let role = format!("{:?}", step.role).to_lowercase();
        let _ = writeln!(out, "{:>3} {role:<7} {:<12} {}", at + 1, step.layer.to_string(), step.what);
        let _ = writeln!(out, "{:24} why: {}", "", step.why);
        if let Some(undo) = &step.undo {
            let _ = writeln!(out, "{:24} undo: {undo}", "");
        }
    }
    let _ = writeln!(out, "\nfile descriptors of the runner (0, 1, 2 are /dev/null)");
    for slot in plan.fds.iter() {
        let _ = writeln!(out, "{:>3} {:<15} {:?}, {:?}", slot.number, slot.name, slot.kind, slot.access);
    }
    for warning in &plan.warnings {
        let grade = if warning.missing { "missing" } else { "weaker" };
        let _ = writeln!(out, "\nwarning: {} {grade}: {}\n         {}", warning.layer, warning.text, warning.remedy);
    }
    for blocker in &plan.blockers {
        let _ = writeln!(out, "\nrefused: {blocker}");
    }
    out
}
