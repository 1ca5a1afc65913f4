//! The kernel store: import from a Debian package, a bare image or the host; list, choose, remove.
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::modules::{self, ModuleSet};
use crate::progress::{Phase, Progress};
use crate::store::{Scratch, Store, write_atomically};
use crate::{deb, elf};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MAX_IMAGE: u64 = 1 << 30;
const FORMAT: u32 = 1;

/// Where a kernel comes from.
#[derive(Debug, Clone)]
pub enum KernelSource {
    /// A Debian linux-image package.
    Deb { path: PathBuf },
    /// A bzImage or ELF vmlinux, with the `/lib/modules/RELEASE` directory it belongs to; without one, its drivers must
    /// be built in.
    Image { path: PathBuf, modules: Option<PathBuf> },
    /// This host's own: /boot/vmlinuz-RELEASE and /lib/modules/RELEASE; the running one if no release is given.
    Host { release: Option<String> },
}

impl KernelSource {
    /// By the name's ending: `.deb`, else an image.
    #[must_use]
    pub fn from_path(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension == "deb" => KernelSource::Deb { path: path.to_owned() },
            _ => KernelSource::Image { path: path.to_owned(), modules: None },
        }
    }
}

/// A file of the store, relative to its kernel's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleFile {
    pub name: String,
    pub sha256: Digest,
    pub size: u64,
}

/// `manifest.json` of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelManifest {
    pub format: u32,
    pub name: String,
    pub version: String,
    /// The file's name, or "host".
    pub source: String,
    /// The packed image (`vmlinuz`), if the source had one.
    pub vmlinuz: Option<ModuleFile>,
    /// The unpacked ELF image (`vmlinux`): nothing to unpack at boot.
    pub vmlinux: Option<ModuleFile>,
    /// The vmlinux has the PVH entry point.
    pub pvh: bool,
    /// Modules for every guest, in load order.
    pub modules: Vec<ModuleFile>,
    /// Further modules by what asks for them (a file system's name), each chain in load order.
    pub on_demand: BTreeMap<String, Vec<ModuleFile>>,
}

/// A kernel in the store.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub directory: PathBuf,
    pub manifest: KernelManifest,
}

impl Kernel {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// What to boot: the ELF image if it has the PVH entry (it starts sooner), else the bzImage.
    #[must_use]
    pub fn boot_image(&self) -> PathBuf {
        let elf = self.manifest.vmlinux.is_some() && (self.manifest.pvh || self.manifest.vmlinuz.is_none());
        self.directory.join(if elf { "vmlinux" } else { "vmlinuz" })
    }

    /// The bzImage, if there is one.
    #[must_use]
    pub fn bzimage(&self) -> Option<PathBuf> {
        self.manifest.vmlinuz.as_ref().map(|_| self.directory.join("vmlinuz"))
    }

    pub(crate) fn module_path(&self, module: &ModuleFile) -> PathBuf {
        self.directory.join("modules").join(format!("{}.ko", module.name))
    }
}

/// What an import has gathered.
struct Gathered {
    version: String,
    source: String,
    image: Vec<u8>,
    modules: ModuleSet,
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._+-".contains(&c);
    let good = (1..=64).contains(&name.len()) && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(plain);
    if good { Ok(()) } else { Err(Error::BadName { name: name.to_owned() }) }
}

impl Store {
    /// Imports a kernel under `name` (its version if none is given). The first one becomes the default.
    pub fn import_kernel(
        &self,
        source: &KernelSource,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Kernel> {
        let _lock = self.lock("kernels")?;
        let scratch = self.scratch()?;
        let gathered = gather(source, &scratch, progress)?;
        let name = name.unwrap_or(&gathered.version).to_owned();
        check_name(&name)?;
        let target = self.kernels_dir().join(&name);
        if target.exists() {
            return Err(Error::KernelExists { name });
        }
        build(&gathered, &name, &scratch, progress)?;
        scratch.publish("kernel", &target)?;
        if self.default_name().is_none() {
            self.set_default_kernel(&name)?;
        }
        self.load_kernel(&name)
    }

    /// All kernels, by name. A directory without a readable manifest is not one.
    pub fn kernels(&self) -> Result<Vec<Kernel>> {
        let directory = self.kernels_dir();
        let mut kernels = Vec::new();
        for entry in std::fs::read_dir(&directory).map_err(Error::io("reading the directory", &directory))? {
            let entry = entry.map_err(Error::io("reading the directory", &directory))?;
            if let Some(name) = entry.file_name().to_str().filter(|n| check_name(n).is_ok()) {
                kernels.extend(self.load_kernel(name).ok());
            }
        }
        kernels.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(kernels)
    }

    /// The kernel of that name; without one the default, or the only one.
    pub fn kernel(&self, name: Option<&str>) -> Result<Kernel> {
        if let Some(name) = name {
            check_name(name)?;
            return self.load_kernel(name);
        }
        if let Some(kernel) = self.default_name().and_then(|name| self.load_kernel(&name).ok()) {
            return Ok(kernel);
        }
        let mut all = self.kernels()?;
        match (all.pop(), all.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(_), false) => Err(Error::NoDefault),
            (None, _) => Err(Error::NoKernels),
        }
    }

    /// The default's name, if one was chosen.
    #[must_use]
    pub fn default_name(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.default_file()).ok()?;
        let name = text.trim().to_owned();
        check_name(&name).ok().map(|()| name)
    }

    pub fn set_default_kernel(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.load_kernel(name)?;
        write_atomically(&self.default_file(), name.as_bytes())
    }

    pub fn remove_kernel(&self, name: &str) -> Result<()> {
        let _lock = self.lock("kernels")?;
        check_name(name)?;
        self.load_kernel(name)?;
        let scratch = self.scratch()?;
        // Gone at once for others, then deleted with the scratch directory. A running VM has its files open.
        let from = self.kernels_dir().join(name);
        std::fs::rename(&from, scratch.path().join("removed")).map_err(Error::io("removing", &from))?;
        if self.default_name().as_deref() == Some(name) {
            let _ = std::fs::remove_file(self.default_file());
        }
        Ok(())
    }

    fn default_file(&self) -> PathBuf {
        // Not a valid kernel name, so never in the way of one.
        self.kernels_dir().join(".default")
    }

    fn load_kernel(&self, name: &str) -> Result<Kernel> {
        let directory = self.kernels_dir().join(name);
        let path = directory.join("manifest.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoSuchKernel { name: name.into() });
            }
            Err(e) => return Err(Error::io("reading", &path)(e)),
        };
        let manifest: KernelManifest = serde_json::from_slice(&bytes).map_err(|e| Error::archive(&path, e))?;
        if manifest.format != FORMAT || manifest.name != name {
            return Err(Error::archive(&path, "it belongs to another version or another name"));
        }
        Ok(Kernel { directory, manifest })
    }
}

fn gather(source: &KernelSource, scratch: &Scratch, progress: &mut dyn FnMut(Progress)) -> Result<Gathered> {
    match source {
        KernelSource::Deb { path } => {
            let unpacked = scratch.path().join("deb");
            std::fs::create_dir(&unpacked).map_err(Error::io("making the directory", &unpacked))?;
            let package = deb::read(path, &unpacked, progress)?;
            if !elf::is_bzimage(&package.vmlinuz) {
                let problem = "its boot/vmlinuz is no x86-64 bzImage".to_owned();
                return Err(Error::NotAKernel { path: path.clone(), problem });
            }
            let (version, image, modules) = (package.version, package.vmlinuz, package.modules);
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
    let modules = modules.map(ModuleSet::from_directory).transpose()?.unwrap_or_default();
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
fn build(gathered: &Gathered, name: &str, scratch: &Scratch, progress: &mut dyn FnMut(Progress)) -> Result<()> {
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
        if let Ok(vmlinux) = elf::unpack_bzimage(&gathered.image) {
            manifest.pvh = elf::has_pvh_note(&vmlinux);
            manifest.vmlinux = Some(store_file(&directory, "vmlinux", &vmlinux)?);
        }
    } else {
        manifest.pvh = elf::has_pvh_note(&gathered.image);
        manifest.vmlinux = Some(store_file(&directory, "vmlinux", &gathered.image)?);
    }
    add_modules(gathered, &mut manifest, &modules_dir, progress)?;
    let json = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::archive(&directory, e))?;
    write_atomically(&directory.join("manifest.json"), &json)
}

fn add_modules(
    gathered: &Gathered,
    manifest: &mut KernelManifest,
    directory: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    if gathered.modules.is_empty() {
        return Ok(());
    }
    let drivers = gathered.modules.missing();
    if !drivers.is_empty() {
        return Err(Error::MissingDrivers { drivers });
    }
    let mut set = gathered.modules.clone();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::silent;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        (directory, store)
    }

    /// A file that passes for a bare ELF kernel.
    fn elf_file(directory: &Path) -> PathBuf {
        let path = directory.join("vmlinux-test");
        std::fs::write(&path, b"\x7fELF\x02\x01 and so on").unwrap();
        path
    }

    #[test]
    fn import_choose_and_remove() {
        let (directory, store) = store();
        assert!(matches!(store.kernel(None), Err(Error::NoKernels)));
        let source = KernelSource::from_path(&elf_file(directory.path()));
        let kernel = store.import_kernel(&source, None, &mut silent).unwrap();
        assert_eq!((kernel.name(), kernel.manifest.pvh), ("vmlinux-test", false));
        assert!(kernel.boot_image().ends_with("vmlinux"));
        assert!(matches!(store.import_kernel(&source, None, &mut silent), Err(Error::KernelExists { .. })));
        store.import_kernel(&source, Some("other"), &mut silent).unwrap();
        assert_eq!(store.kernel(None).unwrap().name(), "vmlinux-test");
        store.set_default_kernel("other").unwrap();
        assert_eq!(store.kernel(None).unwrap().name(), "other");
        store.remove_kernel("other").unwrap();
        assert_eq!(store.kernels().unwrap().len(), 1);
        assert_eq!(store.kernel(None).unwrap().name(), "vmlinux-test");
        assert!(matches!(store.remove_kernel("other"), Err(Error::NoSuchKernel { .. })));
        assert_eq!(std::fs::read_dir(directory.path().join("cache/tmp")).unwrap().count(), 1);
    }

    #[test]
    fn names_are_no_paths() {
        let (directory, store) = store();
        let source = KernelSource::from_path(&elf_file(directory.path()));
        let long = "x".repeat(65);
        for bad in ["", "..", ".x", "-x", "a/b", "a\0b", "a\nb", "ä", long.as_str()] {
            assert!(matches!(store.kernel(Some(bad)), Err(Error::BadName { .. })), "{bad:?}");
            assert!(matches!(store.import_kernel(&source, Some(bad), &mut silent), Err(Error::BadName { .. })));
        }
    }

    #[test]
    fn what_is_no_kernel_says_so() {
        let (directory, store) = store();
        let import = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).unwrap();
            store.import_kernel(&KernelSource::from_path(&path), None, &mut silent).unwrap_err()
        };
        assert!(matches!(import("text", b"hello"), Error::NotAKernel { .. }));
        assert!(matches!(import("x.deb", b"hello"), Error::BadArchive { .. }));
        assert!(matches!(import("empty.deb", b"!<arch>\n"), Error::BadArchive { .. }));
        let nowhere = KernelSource::Host { release: Some("no-such-release".into()) };
        assert!(matches!(store.import_kernel(&nowhere, None, &mut silent), Err(Error::NotAKernel { .. })));
        let source = KernelSource::Image { path: directory.path().to_owned(), modules: None };
        assert!(matches!(store.import_kernel(&source, None, &mut silent), Err(Error::WrongKind { .. })));
        assert!(store.kernels().unwrap().is_empty());
    }
}
