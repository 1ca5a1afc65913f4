//! Debian kernel packages: an `ar` archive with `data.tar.{xz,zst,gz}` (deb(5)).
use crate::compress::{self, Bounded};
use crate::error::{Error, Result};
use crate::modules::{ModuleSet, module_name};
use crate::progress::{Phase, Progress};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const MAX_UNPACKED: u64 = 4 << 30;
const MAX_KERNEL: u64 = 256 << 20;
const MAX_LIST: u64 = 4 << 20;
const MAX_ENTRIES: u64 = 100_000;

/// What a kernel package holds for us.
pub(crate) struct Package {
    pub version: String,
    pub vmlinuz: Vec<u8>,
    pub modules: ModuleSet,
}

/// Counts what is read, for the progress.
struct Counted<'a, R> {
    inner: R,
    done: u64,
    total: u64,
    told: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.done += n as u64;
        if self.done - self.told >= 1 << 20 {
            self.told = self.done;
            (self.progress)(Progress { phase: Phase::ReadingPackage, done: self.done, total: self.total });
        }
        Ok(n)
    }
}

/// Reads the package; module files go to `scratch` under numbers (their names stay in the set only).
pub(crate) fn read(path: &Path, scratch: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Package> {
    let file = File::open(path).map_err(Error::io("opening", path))?;
    let mut archive = ar::Archive::new(io::BufReader::new(file));
    while let Some(entry) = archive.next_entry() {
        let entry = entry.map_err(|e| Error::archive(path, e))?;
        let name = String::from_utf8_lossy(entry.header().identifier()).trim_end_matches('/').to_owned();
        let Some(suffix) = name.strip_prefix("data.tar") else { continue };
        let total = entry.header().size();
        let counted = Counted { inner: entry, done: 0, total, told: 0, progress };
        let reader = match suffix {
            "" => Box::new(counted) as Box<dyn Read + '_>,
            ".xz" => compress::xz(counted),
            ".zst" => compress::zstd(counted).map_err(|e| Error::archive(path, e))?,
            ".gz" => compress::gzip(counted),
            other => return Err(Error::archive(path, format!("data.tar{other} is packed in an unknown way"))),
        };
        return read_data(path, Bounded::new(reader, MAX_UNPACKED), scratch);
    }
    Err(Error::archive(path, "no data.tar in it"))
}

fn read_data(path: &Path, reader: impl Read, scratch: &Path) -> Result<Package> {
    let mut tar = tar::Archive::new(reader);
    let mut kernel: Option<(String, Vec<u8>)> = None;
    let mut modules = ModuleSet::default();
    let mut number = 0u64;
    for entry in tar.entries().map_err(|e| Error::archive(path, e))? {
        let mut entry = entry.map_err(|e| Error::archive(path, e))?;
        number += 1;
        if number > MAX_ENTRIES {
            return Err(Error::TooLarge { path: path.to_owned(), problem: format!("more than {MAX_ENTRIES} entries") });
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(|e| Error::archive(path, e))?.to_string_lossy().into_owned();
        let name = name.trim_start_matches("./").to_owned();
        let base = name.rsplit('/').next().unwrap_or(&name);
        let in_modules = name.starts_with("lib/modules/") || name.starts_with("usr/lib/modules/");
        if let Some(version) = name.strip_prefix("boot/vmlinuz-") {
            let mut bytes = Vec::new();
            Bounded::new(&mut entry, MAX_KERNEL).read_to_end(&mut bytes).map_err(|e| Error::archive(path, e))?;
            if kernel.replace((version.to_owned(), bytes)).is_some() {
                return Err(Error::archive(path, "more than one kernel in it"));
            }
        } else if in_modules && base == "modules.builtin" {
            let mut list = String::new();
            Bounded::new(&mut entry, MAX_LIST).read_to_string(&mut list).map_err(|e| Error::archive(path, e))?;
            modules.add_builtin(&list);
        } else if let (true, Some(module)) = (in_modules, module_name(base)) {
            // The suffix says how it is packed; the name is ours.
            let suffix = base.find(".ko").map_or("", |at| &base[at..]);
            let target = scratch.join(format!("{number}{suffix}"));
            let mut file = File::create_new(&target).map_err(Error::io("creating", &target))?;
            io::copy(&mut entry, &mut file).map_err(Error::io("writing", &target))?;
            modules.add_file(module, target);
        }
    }
    let Some((version, vmlinuz)) = kernel else {
        let problem = "there is no boot/vmlinuz-* in it (a meta package only names the real one)".to_owned();
        return Err(Error::NotAKernel { path: path.to_owned(), problem });
    };
    Ok(Package { version, vmlinuz, modules })
}
