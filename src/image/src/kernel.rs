//! The kernel store: import from a Debian package, a bare image or the host; list, choose, remove.
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::import::{build, gather};
use crate::progress::Progress;
use crate::store::{Store, write_atomically};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) const FORMAT: u32 = 1;

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
        std::fs::write(&path, b"\x7fELF\x02\x01 with LNRO0005 in it").unwrap();
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
        assert!(matches!(import("vmlinux", b"\x7fELF\x02\x01 without"), Error::MissingDrivers { .. }));
        let no_modules = Some(directory.path().join("modules"));
        std::fs::create_dir_all(directory.path().join("modules/kernel")).unwrap();
        let source = KernelSource::Image { path: elf_file(directory.path()), modules: no_modules };
        assert!(matches!(store.import_kernel(&source, None, &mut silent), Err(Error::MissingDrivers { .. })));
        let nowhere = KernelSource::Host { release: Some("no-such-release".into()) };
        assert!(matches!(store.import_kernel(&nowhere, None, &mut silent), Err(Error::NotAKernel { .. })));
        let source = KernelSource::Image { path: directory.path().to_owned(), modules: None };
        assert!(matches!(store.import_kernel(&source, None, &mut silent), Err(Error::WrongKind { .. })));
        assert!(store.kernels().unwrap().is_empty());
    }
}
