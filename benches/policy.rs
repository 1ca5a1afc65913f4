//! What loading a SELinux policy costs, and each question to it after that, on a whole distribution's policy.

use std::path::{Path, PathBuf};
use std::time::Instant;

use casemate_audit::policy::ask;
use casemate_audit::policy::separation::separation;
use casemate_audit::policy::vm::Family;
use casemate_audit::{Policy, PolicyError};

use crate::jail::AnyError;
use crate::table::{Samples, Table};

/// The host's own, then the testbed's, which `make testbed` compiles from Debian's policy and our module.
const PLACES: [&str; 2] = ["/sys/fs/selinux/policy", ".cache/testbed/policy/etc/selinux/default/policy/policy.33"];
const LEVELS: [&str; 2] = ["s0:c1,c2", "s0:c3,c4"];
const RUNS: usize = 7;
type Laps = Vec<(&'static str, f64)>;

pub fn questions(csv: &mut String) -> Result<(), AnyError> {
    let Some(file) = PLACES.iter().map(PathBuf::from).find(|place| place.exists()) else {
        println!("policy: skipped, there is none at {}: make testbed", PLACES.join(" nor "));
        return Ok(());
    };
    let mut rows: Vec<(&str, Samples)> = Vec::new();
    for _ in 0..RUNS {
        for (at, (name, took)) in once(&file)?.into_iter().enumerate() {
            if rows.len() <= at {
                rows.push((name, Samples::default()));
            }
            rows[at].1.push(took);
        }
    }
    let rules = Policy::read(&file)?.facts().rules.len();
    let title = format!("{} ({rules} allow rules), ms: median (least..most) of {RUNS}", file.display());
    let mut table = Table::new(title, &["ms"], 1);
    for (name, samples) in rows {
        table.row(name, vec![Some(samples)]);
    }
    table.show(csv);
    Ok(())
}

fn once(file: &Path) -> Result<Laps, PolicyError> {
    let mut rows = Laps::new();
    let mut start = Instant::now();
    let mut lap = |name| {
        rows.push((name, start.elapsed().as_secs_f64() * 1e3));
        start = Instant::now();
    };
    std::fs::read(file).map_err(|source| PolicyError::Read { path: file.into(), source })?;
    lap("baseline: read the file");
    let policy = Policy::read(file)?;
    lap("load: libsepol's, text and facts");
    let family = Family::find(&policy, None)?;
    let (a, b) = (family.at(&policy, LEVELS[0])?, family.at(&policy, LEVELS[1])?);
    lap("first contexts: into libsepol's security server");
    ask::reach(&policy, &a, &b)?;
    lap("reach");
    ask::rights(&policy, &family, &a)?;
    lap("rights");
    ask::who(&policy, &family, &a)?;
    lap("who");
    ask::entries(&policy, &a, &family)?;
    lap("entries");
    ask::constrained(&policy, &a, &b)?;
    lap("constrained");
    ask::flows(&policy, &family, &a, &b)?;
    lap("flows");
    ask::booleans(&policy, &family, &a)?;
    lap("booleans");
    separation(&policy, &family, LEVELS, None)?;
    lap("all of it, as the rules judge it");
    Ok(rows)
}
