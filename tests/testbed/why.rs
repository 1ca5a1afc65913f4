//! `casemate why` on a host that enforces: types and categories told apart by the loaded policy, beside seccomp's kills.

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::l1;

pub fn tests() -> Vec<Trial> {
    vec![Trial::test("why: an access vector is told by types or by categories, a kill by its filter", told)]
}

/// selftest provokes each of them in a real jail: its own image by path (no rule on the types), another pair's image
/// (categories), and calls that no filter allows.
fn told() -> Result<(), Failed> {
    let output = l1::sh(
        None,
        "interval=$(cat /proc/sys/kernel/printk_ratelimit); echo 0 > /proc/sys/kernel/printk_ratelimit\n\
         since=$(date +%s)\n\
         casemate selftest > /tmp/why.selftest 2>&1 || cat /tmp/why.selftest >&2\n\
         sleep 1; casemate --format json why --all --since @$since\n\
         echo $interval > /proc/sys/kernel/printk_ratelimit",
    )?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let answer: Value = serde_json::from_slice(&output.stdout).map_err(|e| format!("{e}: {said}"))?;
    let rows = answer["denials"].as_array().cloned().unwrap_or_default();
    let has = |row: &Value, field: &str, text: &str| row[field].as_str().is_some_and(|t| t.contains(text));
    let of = |layer: &str, rule: &str| rows.iter().filter(|r| r["layer"] == layer && has(r, "rule", rule)).count();
    for (layer, rule) in [
        ("selinux", "type enforcement: no rule allows casemate_runner_t"),
        ("selinux", "forbidden for good by (neverallow casemate_runner_t"),
        ("selinux", "categories (MCS): the types allow it"),
        ("seccomp", "no rule in seccomp-filters/runner.io.json"),
    ] {
        if of(layer, rule) == 0 {
            return Err(format!("nothing of {layer} says '{rule}': {answer:#}").into());
        }
    }
    // Whatever was provoked in the runner's domain was a probe's, and nothing proposes to allow it.
    for row in rows.iter().filter(|row| row["who"]["role"] == "probe") {
        if row["expected"] != "probe" || !has(row, "remedy", "nothing should allow it") {
            return Err(format!("{row:#}").into());
        }
    }
    Ok(())
}
