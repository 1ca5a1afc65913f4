//! Options to the wire form of a specification. Every refusal names the option and what to write instead.

use std::path::{Path, PathBuf};

use casemate_spec::wire::{DiskFile, LayerFile, LimitsFile, RebootFile, RootFile, SelinuxFile, SpecFile};
use casemate_spec::{DiskFormat, HugePageSize, PolicyChange, SandboxSpec, SelinuxProfile, parse};

use crate::failure::{Failure, Result};
use crate::run_args::SpecArgs;

const TAR_SUFFIXES: [&str; 8] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.zstd"];
const IMAGE_TYPES: [&str; 3] = ["erofs", "ext4", "squashfs"];

/// The specification as asked for, checked.
pub fn spec_file(args: &SpecArgs) -> Result<SpecFile> {
    let mut spec = match &args.spec {
        Some(path) => read(path)?,
        None => SpecFile { version: casemate_spec::wire::VERSION, ..SpecFile::default() },
    };
    apply(args, &mut spec)?;
    SandboxSpec::try_from(spec.clone())?;
    Ok(spec)
}

fn read(path: &Path) -> Result<SpecFile> {
    let reading = |e| Failure::io(format!("reading the specification {}", path.display()), e);
    let file = std::fs::File::open(path).map_err(reading)?;
    let mut bytes = Vec::new();
    let most = parse::MAX_BYTES as u64 + 1;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, most), &mut bytes).map_err(reading)?;
    if path.extension().is_some_and(|e| e == "json") {
        return Ok(parse::json(&bytes)?);
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::new(format!("the specification {} is not UTF-8", path.display())))?;
    Ok(parse::toml(&text)?)
}

fn apply(args: &SpecArgs, spec: &mut SpecFile) -> Result<()> {
    let set = |field: &mut Option<String>, given: &Option<String>| {
        if given.is_some() {
            field.clone_from(given);
        }
    };
    set(&mut spec.name, &args.name);
    set(&mut spec.hostname, &args.hostname);
    set(&mut spec.cmdline, &args.cmdline);
    set(&mut spec.memory, &args.memory);
    set(&mut spec.cwd, &args.workdir);
    set(&mut spec.user, &args.user);
    set(&mut spec.timeout, &args.timeout);
    set(&mut spec.allow_reduced, &args.allow_reduced);
    spec.cpus = args.cpus.or(spec.cpus);
    spec.bare |= args.bare;
    spec.tty |= args.tty;
    spec.interactive |= args.interactive;
    spec.detach |= args.detach;
    if !args.command.is_empty() {
        spec.command.clone_from(&args.command);
    }
    if let Some(size) = &args.hugepages {
        let size = HugePageSize::parse(size);
        spec.hugepages = Some(size.map_err(|e| Failure::new(format!("--hugepages: {e}")).remedy("use 2M or 1G"))?);
    }
    if let Some(posture) = &args.require {
        spec.require = Some(posture.parse().map_err(|e| Failure::new(format!("--require: {e}")))?);
    }
    if let Some(what) = &args.on_reboot {
        spec.on_reboot = Some(if what == "restart" { RebootFile::Restart } else { RebootFile::Stop });
    }
    if let Some(kernel) = &args.kernel {
        // A name holds no slash; a path here may be relative.
        spec.kernel = Some(if kernel.contains('/') { absolute("--kernel", kernel)? } else { kernel.clone() });
    }
    if let Some(initrd) = &args.initrd {
        spec.initrd = Some(absolute("--initrd", initrd)?);
    }
    if let Some(given) = &args.root {
        spec.root = Some(root(given)?);
    }
    selinux(args, spec);
    for disk in &args.disk {
        spec.disks.push(self::disk(disk)?);
    }
    for (name, value) in environment(&args.env)? {
        spec.env.0.insert(name, value);
    }
    for limit in &args.limit {
        limits(limit, spec.limits.get_or_insert_default())?;
    }
    Ok(())
}

/// An absolute path whose directory has no symlinks. The last part stays as it is: an image that is a symlink is refused later.
pub fn absolute(option: &str, path: &str) -> Result<String> {
    let bad = |problem: String| {
        Failure::new(format!("{option} {path}: {problem}")).remedy("give the path of a file that exists")
    };
    if path.is_empty() {
        return Err(bad("the path is empty".into()));
    }
    let whole = std::path::absolute(path).map_err(|e| bad(e.to_string()))?;
    let (parent, name) = match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) if !path.ends_with("/..") => (parent, Some(name)),
        _ => (whole.as_path(), None),
    };
    let parent = parent.canonicalize().map_err(|e| bad(format!("{}: {e}", parent.display())))?;
    let whole = name.map_or_else(|| parent.clone(), |name| parent.join(name));
    let text = whole.to_str().ok_or_else(|| bad("it is not UTF-8".into()))?;
    Ok(text.to_owned())
}

/// `--root`: a scheme names the kind; without one only what cannot be mistaken is taken.
pub fn root(given: &str) -> Result<RootFile> {
    let (place, mut root) = root_options(given)?;
    let path = |path: &str| absolute("--root", path).map(Some);
    match place.split_once(':') {
        Some(("dir", at)) => root.dir = path(at)?,
        Some(("tar", at)) => root.tar = path(at)?,
        Some((kind, at)) if IMAGE_TYPES.contains(&kind) => {
            root.image = path(at)?;
            root.fstype = Some(kind.into());
        }
        _ => match place.rsplit_once(':') {
            Some((at, kind)) if IMAGE_TYPES.contains(&kind) => {
                root.image = path(at)?;
                root.fstype = Some(kind.into());
            }
            _ => plain_root(place, &mut root)?,
        },
    }
    Ok(root)
}

fn plain_root(place: &str, root: &mut RootFile) -> Result<()> {
    let named = TAR_SUFFIXES.iter().any(|suffix| place.ends_with(suffix));
    match std::fs::metadata(place) {
        Ok(meta) if meta.is_dir() => root.dir = Some(real_directory(place)?),
        Ok(_) if named => root.tar = Some(absolute("--root", place)?),
        Ok(_) => {
            let problem = format!("--root {place}: what is in this file is not guessed");
            return Err(Failure::new(problem)
                .remedy(format!("name it: tar:{place}, erofs:{place}, ext4:{place} or squashfs:{place}")));
        }
        Err(error) => {
            return Err(Failure::io(format!("--root {place}"), error)
                .remedy("give an existing directory, tar archive or image"));
        }
    }
    Ok(())
}

/// A directory the user named through a symlink is the one it leads to.
fn real_directory(place: &str) -> Result<String> {
    let real = PathBuf::from(place).canonicalize().map_err(|e| Failure::io(format!("--root {place}"), e))?;
    real.to_str().map(str::to_owned).ok_or_else(|| Failure::new(format!("--root {place}: the path is not UTF-8")))
}

/// Takes `,writable`, `,overlay=SIZE`, `,format=FORMAT` and `,backing=…` off the end.
fn root_options(given: &str) -> Result<(&str, RootFile)> {
    let (mut place, mut root, mut below) = (given, RootFile::default(), Vec::new());
    while let Some((rest, option)) = place.rsplit_once(',') {
        match option.split_once('=') {
            None if option == "writable" => root.writable = true,
            Some(("overlay", size)) => root.overlay = Some(size.to_owned()),
            Some(("backing", layer)) => below.insert(0, layer),
            Some(("format", name)) => {
                let unknown =
                    || Failure::new(format!("--root {given}: format '{name}' is not known; use raw or qcow2"));
                root.format = Some(format_named(name).ok_or_else(unknown)?);
            }
            _ => break,
        }
        place = rest;
    }
    root.backing = backing("--root", &below)?;
    if place.is_empty() {
        return Err(Failure::new(format!("--root {given}: no path is given")));
    }
    Ok((place, root))
}

/// clap has refused every other word.
fn selinux(args: &SpecArgs, spec: &mut SpecFile) {
    let mut asked = spec.selinux.take().unwrap_or_default();
    match args.selinux_profile.as_deref() {
        Some("svirt") => asked.profile = Some(SelinuxProfile::Svirt),
        Some("container") => asked.profile = Some(SelinuxProfile::Container),
        Some(_) => asked.profile = Some(SelinuxProfile::Casemate),
        None => {}
    }
    match args.on_policy_change.as_deref() {
        Some("stop") => asked.on_policy_change = Some(PolicyChange::Stop),
        Some("pause") => asked.on_policy_change = Some(PolicyChange::Pause),
        Some(_) => asked.on_policy_change = Some(PolicyChange::Warn),
        None => {}
    }
    if args.selinux_level.is_some() {
        asked.level.clone_from(&args.selinux_level);
    }
    asked.level_shared |= args.selinux_level_shared;
    if args.no_relabel {
        asked.relabel = Some(false);
    }
    spec.selinux = (asked != SelinuxFile::default()).then_some(asked);
}

const DISK_FORM: &str = "write --disk id=ID,path=PATH,format=raw|qcow2[,backing=auto|none|PATH:FORMAT][,ro][,shared]\
    [,mount=DIR,fstype=TYPE][,label=LABEL][,relabel=no]";

fn disk(given: &str) -> Result<DiskFile> {
    let bad = |problem: String| Failure::new(format!("--disk {given}: {problem}")).remedy(DISK_FORM);
    let (mut id, mut path, mut format, mut mount, mut fstype) = (None, None, None, None, None);
    let (mut label, mut relabel) = (None, None);
    let mut below = Vec::new();
    let (mut read_only, mut shared) = (false, false);
    for part in given.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        // The categories of a label have commas of their own.
        if let Some(label) = label.as_mut().filter(|_| is_categories(part)) {
            *label = format!("{label},{part}");
            continue;
        }
        let slot = match key {
            "ro" | "shared" if part.contains('=') => return Err(bad(format!("'{key}' takes no value"))),
            "ro" => {
                read_only = true;
                continue;
            }
            "shared" => {
                shared = true;
                continue;
            }
            "backing" if !value.is_empty() => {
                below.push(value);
                continue;
            }
            "backing" => return Err(bad("'backing' needs a value".into())),
            "id" => &mut id,
            "path" => &mut path,
            "format" => &mut format,
            "mount" => &mut mount,
            "fstype" => &mut fstype,
            "label" => &mut label,
            "relabel" => &mut relabel,
            other => return Err(bad(format!("'{other}' is not known"))),
        };
        if value.is_empty() {
            return Err(bad(format!("'{key}' needs a value")));
        }
        if slot.replace(value.to_owned()).is_some() {
            return Err(bad(format!("'{key}' is given twice")));
        }
    }
    let needed = |value: Option<String>, key: &str| value.ok_or_else(|| bad(format!("'{key}' is missing")));
    let known = |given: &str| {
        format_named(given).ok_or_else(|| bad(format!("format '{given}' is not known; it is never guessed")))
    };
    let format = known(&needed(format, "format")?)?;
    let backing = backing("--disk", &below)?;
    let relabel = match relabel.as_deref() {
        None => None,
        Some("yes") => Some(true),
        Some("no") => Some(false),
        Some(other) => return Err(bad(format!("relabel is yes or no, not '{other}'"))),
    };
    let path = absolute("--disk", &needed(path, "path")?)?;
    Ok(DiskFile { id: needed(id, "id")?, path, format, backing, read_only, shared, mount, fstype, label, relabel })
}

fn format_named(name: &str) -> Option<DiskFormat> {
    match name {
        "raw" => Some(DiskFormat::Raw),
        "qcow2" => Some(DiskFormat::Qcow2),
        _ => None,
    }
}

/// What was given of a chain: nothing or `auto`, so that it is found out later; `none`; or each image, top to bottom.
fn backing(option: &str, given: &[&str]) -> Result<Option<Vec<LayerFile>>> {
    match given {
        [] | ["auto"] => Ok(None),
        ["none"] => Ok(Some(Vec::new())),
        layers => layers.iter().map(|layer| self::layer(option, layer)).collect::<Result<_>>().map(Some),
    }
}

fn layer(option: &str, given: &str) -> Result<LayerFile> {
    let named = given.rsplit_once(':').and_then(|(path, format)| Some((path, format_named(format)?)));
    let (path, format) = named.ok_or_else(|| {
        Failure::new(format!("{option}: backing={given} names no format"))
            .remedy("write backing=PATH:raw or backing=PATH:qcow2 for each image, top to bottom; or auto, or none")
    })?;
    Ok(LayerFile { path: absolute(option, path)?, format })
}

/// `c5`, `c5.c9`
fn is_categories(part: &str) -> bool {
    let one =
        |text: &str| text.strip_prefix('c').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    part.split('.').all(one)
}

/// `NAME=VALUE`, or `NAME` for the caller's own value.
pub fn environment(given: &[String]) -> Result<Vec<(String, String)>> {
    given
        .iter()
        .map(|entry| match entry.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => match std::env::var(entry) {
                Ok(value) => Ok((entry.clone(), value)),
                Err(_) => Err(Failure::new(format!("--env {entry}: this variable is not set here, or not UTF-8"))
                    .remedy(format!("write --env {entry}=VALUE"))),
            },
        })
        .collect()
}

fn limits(given: &str, limits: &mut LimitsFile) -> Result<()> {
    let bad = |problem: &str| {
        Failure::new(format!("--limit {given}: {problem}"))
            .remedy("write cpu=150% (of one CPU), memory-overhead=64M, pids=64 or log=1M")
    };
    for part in given.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| bad("it is no KEY=VALUE"))?;
        match key {
            "cpu" => {
                let percent = value.strip_suffix('%').ok_or_else(|| bad("cpu is given in per cent"))?;
                limits.cpu_percent = Some(percent.parse().map_err(|_| bad("cpu is a whole number of per cent"))?);
            }
            "memory-overhead" => limits.memory_overhead = Some(value.to_owned()),
            "pids" => limits.pids = Some(value.parse().map_err(|_| bad("pids is a number"))?),
            "log" => limits.log = Some(value.to_owned()),
            other => return Err(bad(&format!("'{other}' is not known"))),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
