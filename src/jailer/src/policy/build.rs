//! `policy build` and `policy check --base`: the module as one file, compiled against a base policy where one is given.
//!
//! Needs no SELinux on this host and no root: text in, text out, and the compiler secilc for the judgement.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::blocks::{self, Block};
use super::{Options, Status, Verb, files, status};
use crate::error::StepFailed;

/// The kernel's binary format: what every supported kernel reads (Linux 5.5 and later).
const VERSION: &str = "33";

pub fn build(verb: Verb, options: &Options) -> Result<Status, StepFailed> {
    let stage = if verb == Verb::Build { "build the SELinux module" } else { "check the SELinux module" };
    let module = files::module(options)?;
    let mut did = Vec::new();
    let known = names(stage, options, &module)?;
    let found = module.iter().map(|(path, text)| blocks::blocks(text, &known).map_err(|e| not_cil(stage, path, &e)));
    let found: Vec<Block> = found.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    if let Some(base) = &options.base {
        compile(stage, base, &module)?;
        did.push(format!("compiles with {}, and every neverallow rule of both holds", base.display()));
    }
    if verb == Verb::Build {
        did.push(write(stage, options, &module)?);
    }
    // Without a base nothing can be said of blocks.
    let blocks = if options.base.is_some() { found } else { Vec::new() };
    Ok(Status { blocks, ..status(did) })
}

/// All that base and module declare.
fn names(stage: &str, options: &Options, module: &[(PathBuf, String)]) -> Result<BTreeSet<String>, StepFailed> {
    let mut known = BTreeSet::new();
    for (path, text) in module {
        blocks::declared(text, &mut known).map_err(|e| not_cil(stage, path, &e))?;
    }
    if let Some(base) = &options.base {
        for path in base_files(stage, base)? {
            blocks::declared(&files::read(stage, &path)?, &mut known).map_err(|e| not_cil(stage, &path, &e))?;
        }
    }
    Ok(known)
}

fn not_cil(stage: &str, path: &Path, error: &blocks::NotCil) -> StepFailed {
    StepFailed::because(stage, format!("{}: {error}", path.display()))
}

fn base_files(stage: &str, base: &Path) -> Result<Vec<PathBuf>, StepFailed> {
    let found = files::cil_files(base);
    if found.is_empty() {
        let why = format!(
            "no .cil file in {}; of an installed policy: semodule -c -E every module into a directory",
            base.display()
        );
        return Err(StepFailed::because(stage, why));
    }
    Ok(found)
}

/// One binary policy of both, thrown away: the compiler's word is what counts.
fn compile(stage: &str, base: &Path, module: &[(PathBuf, String)]) -> Result<(), StepFailed> {
    let secilc = files::tool(stage, "secilc", "secilc")?;
    let mut command = Command::new(secilc);
    command.args(["-m", "-M", "true", "-c", VERSION, "-o", "/dev/null", "-f", "/dev/null"]);
    command.args(base_files(stage, base)?).args(module.iter().map(|(path, _)| path));
    files::call(stage, &mut command).map(drop).map_err(|failed| older(failed, module))
}

/// An older compiler's complaint, with the way out.
pub fn older(failed: StepFailed, module: &[(PathBuf, String)]) -> StepFailed {
    let denies = module.iter().any(|(_, text)| text.contains("\n(deny "));
    if denies && (failed.error.contains("deny") && failed.error.contains("keyword")) {
        let why = format!("{}; this libsepol is older than 3.6 and knows no deny rules: --without-deny", failed.error);
        return StepFailed::because(&failed.step, why);
    }
    failed
}

/// One CIL file that semodule takes, or the set of files where the output is a directory.
fn write(stage: &str, options: &Options, module: &[(PathBuf, String)]) -> Result<String, StepFailed> {
    let output = options.output.as_deref().unwrap_or(Path::new("casemate_module.cil"));
    let failed = |path: &Path, e: std::io::Error| StepFailed::because(stage, format!("{}: {e}", path.display()));
    if output.is_dir() {
        for (path, text) in module {
            let target = output.join(path.file_name().unwrap_or_default());
            std::fs::write(&target, text).map_err(|e| failed(&target, e))?;
        }
        let n = module.len();
        return Ok(format!("wrote {n} files to {0}: semodule -i {0}/casemate_*.cil", output.display()));
    }
    // The store names a module after its file; one that holds the whole must not lie beside its parts.
    if files::module_name(output) != "casemate_module" {
        let why = format!("{}: name the file casemate_module.cil, which `policy remove` knows", output.display());
        return Err(StepFailed::because(stage, why));
    }
    let mut whole = String::new();
    for (path, text) in module {
        let _ = writeln!(whole, "; ==== {} ====\n{text}", files::module_name(path));
    }
    std::fs::write(output, whole).map_err(|e| failed(output, e))?;
    Ok(format!("wrote {} files as one to {}", module.len(), output.display()))
}
