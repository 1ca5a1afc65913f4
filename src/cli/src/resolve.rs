//! Names to files, before the jailer: kernel, initramfs with the agent, root image. All of it is cached by content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use casemate_agent_protocol::FsType;
use casemate_client::dirs;
use casemate_image::{Kernel, KernelManifest, RootSource, Store, TarCompression};
use casemate_spec::SandboxSpec;
use casemate_spec::wire::{RootFile, SpecFile};

use crate::failure::{Failure, Result};
use crate::output::{Context, say};
use crate::progress::Bar;

/// The specification with every name replaced by a file that exists.
pub fn resolve(mut spec: SpecFile, context: &Context) -> Result<SpecFile> {
    declare_chains(&mut spec)?;
    if spec.bare {
        return Ok(spec);
    }
    let store = open(context)?;
    let (kernel, boots) = kernel(&store, spec.kernel.as_deref())?;
    if let Some(root) = spec.root.take() {
        spec.root = Some(self::root(&store, root, context)?);
    }
    if spec.initrd.is_none() {
        let types = file_systems(&spec);
        let types: Vec<&str> = types.iter().map(String::as_str).collect();
        let agent = dirs::program("casemate-agent")?;
        spec.initrd = Some(text(&store.initramfs(&kernel, &agent, &types)?.path)?);
    }
    spec.kernel = Some(text(&boots)?);
    Ok(spec)
}

/// Every chain becomes the explicit list that the jailer takes; checked again, since the images said what is in it.
fn declare_chains(spec: &mut SpecFile) -> Result<()> {
    casemate_client::chain::declare(spec).map_err(|e| Failure::from_error(&e))?;
    SandboxSpec::try_from(spec.clone())?;
    Ok(())
}

/// The kernel's path where it is known; builds nothing, for `plan`.
pub fn look_up(mut spec: SpecFile, context: &Context) -> Result<SpecFile> {
    declare_chains(&mut spec)?;
    let named = spec.kernel.as_deref().filter(|k| !k.starts_with('/'));
    if !spec.bare && (named.is_some() || spec.kernel.is_none()) && context.dirs.state.join("kernels").is_dir() {
        let found = open(context).ok().and_then(|store| store.kernel(named).ok());
        if let Some(path) = found.and_then(|kernel| text(&kernel.boot_image()).ok()) {
            spec.kernel = Some(path);
        }
    }
    Ok(spec)
}

pub fn open(context: &Context) -> Result<Store> {
    let failed = |e| {
        let failure = Failure::from_error(&e);
        if rustix::process::geteuid().is_root() { failure } else { failure.remedy("run it as root") }
    };
    Store::open(context.dirs.state.clone()).map_err(failed)
}

/// The kernel and the file that boots. By name from the store; a path is a kernel with its drivers built in.
fn kernel(store: &Store, asked: Option<&str>) -> Result<(Kernel, PathBuf)> {
    let Some(path) = asked.filter(|k| k.starts_with('/')).map(PathBuf::from) else {
        let kernel = store.kernel(asked)?;
        let boots = kernel.boot_image();
        return Ok((kernel, boots));
    };
    let failed = |e| Failure::io(format!("--kernel {}", path.display()), e).remedy("give a bzImage or an ELF vmlinux");
    if !std::fs::metadata(&path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("this is no file")));
    }
    let directory = path.parent().map(Path::to_path_buf).unwrap_or_default();
    // A file of the store keeps its modules.
    if directory.parent() == Some(store.root().join("kernels").as_path())
        && let Some(stored) = directory.file_name().and_then(|n| n.to_str())
        && let Ok(kernel) = store.kernel(Some(stored))
    {
        return Ok((kernel, path));
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((Kernel { directory, manifest: unknown(&name) }, path))
}

/// A file that is not in the store: nothing is known of it, and it is booted as it is.
fn unknown(name: &str) -> KernelManifest {
    KernelManifest {
        format: 1,
        name: name.to_owned(),
        version: String::new(),
        source: name.to_owned(),
        vmlinuz: None,
        vmlinux: None,
        pvh: false,
        modules: Vec::new(),
        on_demand: BTreeMap::new(),
    }
}

fn root(store: &Store, root: RootFile, context: &Context) -> Result<RootFile> {
    let source = match (&root.dir, &root.tar) {
        (Some(path), _) => RootSource::Directory { path: path.into() },
        (_, Some(path)) => {
            let compression = TarCompression::from_path(Path::new(path)).unwrap_or(TarCompression::None);
            RootSource::Tar { path: path.into(), compression }
        }
        _ => return Ok(root),
    };
    let mut bar = Bar::new(context);
    let image = store.rootfs(&source, &mut |progress| bar.show(progress))?;
    drop(bar);
    if !image.cached && !context.json() {
        for note in &image.notes {
            say(note);
        }
    }
    let fstype = Some(image.fstype.name().to_owned());
    Ok(RootFile { image: Some(text(&image.path)?), fstype, dir: None, tar: None, ..root })
}

/// What the guest mounts beside its EROFS root.
fn file_systems(spec: &SpecFile) -> Vec<String> {
    let root = spec.root.as_ref().and_then(|root| root.fstype.clone());
    let mut types: Vec<String> = root.into_iter().chain(spec.disks.iter().filter_map(|d| d.fstype.clone())).collect();
    types.retain(|name| name != FsType::Erofs.name());
    types.sort();
    types.dedup();
    types
}

fn text(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(|e| Failure::io(format!("finding {}", path.display()), e))?;
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::new(format!("the path {} is not UTF-8", path.display())))
}
