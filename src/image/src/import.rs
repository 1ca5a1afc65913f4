//! Importing a kernel: its image, unpacked too, and the modules a guest needs, laid out for the store.
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::kernel::{FORMAT, KernelManifest, KernelSource, ModuleFile, check_name};
use crate::modules::{self, ModuleSet};
use crate::progress::{Phase, Progress};
use crate::store::{Scratch, write_atomically};
use crate::{deb, elf};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MAX_IMAGE: u64 = 1 << 30;

/// What an import has gathered.
pub(crate) struct Gathered {
    pub version: String,
    source: String,
    image: Vec<u8>,
    /// `None`: the source has none, so its drivers must be built in.
    modules: Option<ModuleSet>,
}

pub(crate) fn gather(source: &KernelSource, scratch: &Scratch, progress: &mut dyn FnMut(Progress)) -> Result<Gathered> {
    match source {
        KernelSource::Deb { path } => {
            let unpacked = scratch.path().join("deb");
            std::fs::create_dir(&unpacked).map_err(Error::io("making the directory", &unpacked))?;
            let package = deb::read(path, &unpacked, progress)?;
            if !elf::is_bzimage(&package.vmlinuz) {
                let problem = "its boot/vmlinuz is no x86-64 bzImage".to_owned();
                return Err(Error::NotAKernel { path: path.clone(), problem });
            }
            let (version, image, modules) = (package.version, package.vmlinuz, Some(package.modules));
            Ok(Gathered { version, source: file_name(path), image, modules })
        }
        KernelSource::Image { path, modules } => gather_image(path, modules.as_deref(), file_name(path)),
        KernelSource::Host { release } => {
            let running = || rustix::system::uname().release().to_string_lossy().into_owned();
            let release = release.clone().unwrap_or_else(running);
            check_name(&release)?;
            let modules = PathBuf::from("/lib/modules").join(&release);
            let image = PathBuf::from(format!("/boot/vmlinuz-{release}"));
            if !image.exists() {
                let problem = "the host's kernel has no file in /boot".to_owned();
                return Err(Error::NotAKernel { path: image, problem });
            }
            gather_image(&image, modules.is_dir().then_some(modules.as_path()), "host".to_owned())
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

fn gather_image(path: &Path, modules: Option<&Path>, source: String) -> Result<Gathered> {
    let meta = std::fs::metadata(path).map_err(Error::io("looking at", path))?;
    if !meta.is_file() {
        return Err(Error::WrongKind { path: path.to_owned(), wanted: "a regular file" });
    }
    if meta.len() > MAX_IMAGE {
        return Err(Error::TooLarge { path: path.to_owned(), problem: format!("a kernel of {} bytes", meta.len()) });
    }
    let image = std::fs::read(path).map_err(Error::io("reading", path))?;
    let modules = modules.map(ModuleSet::from_directory).transpose()?;
    let version = if elf::is_bzimage(&image) {
        elf::bzimage_version(&image).ok_or_else(|| not_a_kernel(path, "its header names no version"))?
    } else if elf::is_elf64(&image) {
        // An ELF kernel has no header with its version; its file's name has to do.
        file_name(path)
    } else {
        return Err(not_a_kernel(path, "neither a bzImage nor a 64-bit ELF file"));
    };
    Ok(Gathered { version, source, image, modules })
}

fn not_a_kernel(path: &Path, problem: &str) -> Error {
    Error::NotAKernel { path: path.to_owned(), problem: problem.to_owned() }
}

/// Writes the kernel's directory into the scratch place, as `kernel`.
pub(crate) fn build(
    gathered: &Gathered,
    name: &str,
    scratch: &Scratch,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let directory = scratch.path().join("kernel");
    let modules_dir = directory.join("modules");
    std::fs::create_dir_all(&modules_dir).map_err(Error::io("making the directory", &modules_dir))?;
    let mut manifest = KernelManifest {
        format: FORMAT,
        name: name.to_owned(),
        version: gathered.version.clone(),
        source: gathered.source.clone(),
        vmlinuz: None,
        vmlinux: None,
        pvh: false,
        modules: Vec::new(),
        on_demand: BTreeMap::new(),
    };
    progress(Progress { phase: Phase::Vmlinux, done: 0, total: gathered.image.len() as u64 });
    if elf::is_bzimage(&gathered.image) {
        manifest.vmlinuz = Some(store_file(&directory, "vmlinuz", &gathered.image)?);
        // A kernel packed in an unknown way still boots: from its bzImage.
        let vmlinux = elf::unpack_bzimage(&gathered.image).ok();
        if let Some(vmlinux) = &vmlinux {
            manifest.pvh = elf::has_pvh_note(vmlinux);
            manifest.vmlinux = Some(store_file(&directory, "vmlinux", vmlinux)?);
        }
        if let (None, Some(vmlinux)) = (&gathered.modules, &vmlinux) {
            check_builtin(vmlinux)?;
        }
    } else {
        if gathered.modules.is_none() {
            check_builtin(&gathered.image)?;
        }
        manifest.pvh = elf::has_pvh_note(&gathered.image);
        manifest.vmlinux = Some(store_file(&directory, "vmlinux", &gathered.image)?);
    }
    add_modules(gathered, &mut manifest, &modules_dir, progress)?;
    let json = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::archive(&directory, e))?;
    write_atomically(&directory.join("manifest.json"), &json)
}

/// Without modules, the driver of our devices must be in the kernel itself. Its ACPI id stands in no other driver.
fn check_builtin(vmlinux: &[u8]) -> Result<()> {
    if vmlinux.windows(8).any(|w| w == b"LNRO0005") {
        return Ok(());
    }
    Err(Error::MissingDrivers { drivers: vec!["virtio-mmio (CONFIG_VIRTIO_MMIO, CONFIG_ACPI)".to_owned()] })
}

fn add_modules(
    gathered: &Gathered,
    manifest: &mut KernelManifest,
    directory: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let Some(mut set) = gathered.modules.clone() else { return Ok(()) };
    let drivers = set.missing();
    if !drivers.is_empty() {
        return Err(Error::MissingDrivers { drivers });
    }
    let mut order = Vec::new();
    for name in modules::REQUIRED.iter().map(|(name, _)| name).chain(modules::WANTED) {
        set.resolve(name, &mut order)?;
    }
    let base = order.len();
    let mut chains = BTreeMap::new();
    for name in modules::ON_DEMAND {
        let mut chain = order[..base].to_vec();
        set.resolve(name, &mut chain)?;
        if chain.len() > base {
            chains.insert((*name).to_owned(), chain.split_off(base));
        }
    }
    let total = (base + chains.values().map(Vec::len).sum::<usize>()) as u64;
    let mut done = 0;
    let mut store = |name: &String| {
        let content = set.content(name).unwrap_or_default();
        let mut file = store_file(directory, &format!("{name}.ko"), content)?;
        file.name.clone_from(name);
        done += 1;
        progress(Progress { phase: Phase::Modules, done, total });
        Ok(file)
    };
    manifest.modules = order.iter().map(&mut store).collect::<Result<_>>()?;
    for (name, chain) in &chains {
        manifest.on_demand.insert(name.clone(), chain.iter().map(&mut store).collect::<Result<_>>()?);
    }
    Ok(())
}

fn store_file(directory: &Path, name: &str, content: &[u8]) -> Result<ModuleFile> {
    let path = directory.join(name);
    write_atomically(&path, content)?;
    Ok(ModuleFile { name: name.to_owned(), sha256: Digest::of(content), size: content.len() as u64 })
}
