//! `policy install` and `policy remove`: one transaction of semodule, then the labels of our places.
//!
//! Both run in the caller's domain. Over an installed module that is the administrator's, which may load policy; the
//! jailer's own domain may not, and is told so.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use casemate_label::{Context, Profile, SelinuxMode, mode};

use super::{Options, Status, files, in_own_domain, status};
use crate::customizable;
use crate::error::StepFailed;

const PACKAGE: &str = "policycoreutils";
/// What the module's file contexts speak of.
const LABELLED: [&str; 6] = [
    "/usr/bin/casemate",
    "/usr/libexec/casemate",
    "/usr/local/libexec/casemate",
    "/usr/share/casemate",
    "/run/casemate",
    "/var/lib/casemate",
];
/// semodule's own for an administrator's modules.
const PRIORITY: &str = "400";

/// Installs the module in the place of any version of it: files that this version no longer has go in the same
/// transaction, so that an older version can take a newer one's place as well.
pub fn install(options: &Options) -> Result<Status, StepFailed> {
    const STAGE: &str = "install the SELinux module";
    may_change(STAGE)?;
    let module = files::module(options)?;
    let names: Vec<String> = module.iter().map(|(path, _)| files::module_name(path)).collect();
    // of another priority too: semodule would take the higher one of two modules of a name
    let stale: Vec<String> =
        installed()?.into_iter().filter(|m| !names.iter().any(|n| *m == format!("{PRIORITY} {n}"))).collect();
    let mut command = Command::new(files::tool(STAGE, "semodule", PACKAGE)?);
    take_away(&mut command, &stale);
    command.args(["-X", PRIORITY, "-i"]).args(module.iter().map(|(path, _)| path));
    let older = |failed| super::build::older(failed, &module);
    files::call(STAGE, &mut command).map_err(older)?;
    let mut did = vec![format!("installed {} CIL files", module.len())];
    if !stale.is_empty() {
        did.push(format!("took away {}, which this version does not have", stale.join(", ")));
    }
    did.push(relabel(STAGE)?);
    did.extend(customizable(STAGE, customizable::add, "added")?);
    Ok(status(did))
}

/// Takes the module out of the store and of the kernel, and gives our places the labels they have without it.
pub fn remove() -> Result<Status, StepFailed> {
    const STAGE: &str = "remove the SELinux module";
    may_change(STAGE)?;
    let ours = installed()?;
    if ours.is_empty() {
        return Err(StepFailed::because(STAGE, "it is not installed; `casemate policy status` shows what is loaded"));
    }
    // Their types would become unlabeled_t under them: no access, and no label that could be given back.
    let users = in_use();
    if !users.is_empty() {
        let why = format!("it confines running sandboxes ({}); stop them first: casemate stop", users.join(", "));
        return Err(StepFailed::because(STAGE, why));
    }
    let mut command = Command::new(files::tool(STAGE, "semodule", PACKAGE)?);
    take_away(&mut command, &ours);
    files::call(STAGE, &mut command)?;
    let mut did = vec![format!("removed {} modules", ours.len())];
    // first, or restorecon would leave the files of these types alone
    did.extend(customizable(STAGE, customizable::remove, "took away")?);
    did.push(relabel(STAGE)?);
    Ok(status(did))
}

/// The store's modules of ours, `priority name` each.
pub fn installed() -> Result<Vec<String>, StepFailed> {
    const STAGE: &str = "list the installed modules";
    let listed = files::call(STAGE, Command::new(files::tool(STAGE, "semodule", PACKAGE)?).arg("-lfull"))?;
    Ok(listed.lines().filter_map(ours).collect())
}

/// `400 casemate_types cil`, of `semodule -lfull`.
fn ours(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (priority, name) = (words.next()?, words.next()?);
    (priority.parse::<u16>().is_ok() && name.starts_with("casemate_")).then(|| format!("{priority} {name}"))
}

/// Our types in `customizable_types`, so that restorecon keeps off images in use. What was done, if anything was.
fn customizable(stage: &str, act: fn(&Path) -> io::Result<bool>, word: &str) -> Result<Option<String>, StepFailed> {
    let Some(file) = customizable::file() else { return Ok(None) };
    let changed = act(&file).map_err(|e| StepFailed::because(stage, format!("{}: {e}", file.display())))?;
    Ok(changed.then(|| format!("{word} {} in {}", customizable::OURS.join(" and "), file.display())))
}

fn take_away(command: &mut Command, modules: &[String]) {
    for (priority, name) in modules.iter().filter_map(|m| m.split_once(' ')) {
        command.args(["-X", priority, "-r", name]);
    }
}

fn may_change(stage: &str) -> Result<(), StepFailed> {
    let facts = mode::probe();
    if facts.mode == SelinuxMode::Disabled {
        return Err(StepFailed::because(stage, "SELinux is off; boot with security=selinux selinux=1 and a policy"));
    }
    // Our own module takes the right away: a jailer that can load policy could take itself out of it.
    if in_own_domain(&facts) {
        let why = "the jailer's own domain may not load policy; call `casemate policy`, which starts it in yours";
        return Err(StepFailed::because(stage, why));
    }
    Ok(())
}

/// Processes in a domain of ours, each with its sandbox where its cgroup tells it.
fn in_use() -> Vec<String> {
    let profile = Profile::casemate();
    let domains = [Some(profile.runner), profile.jailer];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else { continue };
        // One that cannot be read has gone.
        let Ok(raw) = fs::read(entry.path().join("attr/current")) else { continue };
        let Ok(context) = Context::from_bytes(&raw) else { continue };
        if domains.iter().flatten().any(|domain| domain == context.type_()) {
            found.push(named(&entry.path()).unwrap_or_else(|| format!("process {pid}")));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The sandbox's name, which is its cgroup's.
fn named(process: &Path) -> Option<String> {
    let text = fs::read_to_string(process.join("cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (_, name) = path.split_once("/casemate/")?;
    Some(name.split('/').next()?.to_owned())
}

fn relabel(stage: &str) -> Result<String, StepFailed> {
    let restorecon = files::tool(stage, "restorecon", PACKAGE)?;
    let present: Vec<&str> = LABELLED.into_iter().filter(|path| Path::new(path).exists()).collect();
    if present.is_empty() {
        return Ok("no file of Casemate's to label".into());
    }
    files::call(stage, Command::new(restorecon).arg("-R").args(&present))?;
    Ok(format!("restored labels of {}", present.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_modules_are_taken_away() {
        let list =
            "400 casemate_types      cil\n100 virt  pp\n300 casemate_old cil disabled\n400 mycasemate_x cil\nnoise\n";
        let found: Vec<String> = list.lines().filter_map(ours).collect();
        assert_eq!(found, ["400 casemate_types", "300 casemate_old"]);
        let mut command = Command::new("semodule");
        take_away(&mut command, &found);
        let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        assert_eq!(args, ["-X", "400", "-r", "casemate_types", "-X", "300", "-r", "casemate_old"]);
    }
}
