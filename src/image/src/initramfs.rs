//! The initramfs: the agent as /init, the kernel's modules in load order, two device nodes. The same input gives the
//! same bytes. Not compressed: a few MB that the kernel copies faster than it unpacks them.
//!
//! The runner appends the guest configuration as a further segment; ours ends on a page, which keeps it aligned.
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, ModuleFile};
use crate::store::Store;
use casemate_agent_protocol::{MODULES_DIR, MODULES_LIST_PATH};
use cpio::newc;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Counts as input: a change of the layout makes new files.
const LAYOUT: u64 = 1;
const PAGE: usize = 4096;
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;
const CHAR_DEVICE: u32 = 0o020_600;

/// A built initramfs in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initramfs {
    pub path: PathBuf,
    pub digest: Digest,
    pub size: u64,
    pub cached: bool,
}

impl Store {
    /// The initramfs of this kernel and agent, from the cache if they are the same as before. `extra` names file
    /// systems (or other on-demand modules) beyond EROFS and overlayfs that the guest mounts; what the kernel has built
    /// in needs no naming and does no harm.
    pub fn initramfs(&self, kernel: &Kernel, agent: &Path, extra: &[&str]) -> Result<Initramfs> {
        let agent_bytes = std::fs::read(agent).map_err(Error::io("reading the agent", agent))?;
        let modules = select(kernel, extra);
        let mut key = Hasher::default();
        key.number(LAYOUT);
        key.field(&agent_bytes);
        for module in &modules {
            key.field(module.name.as_bytes());
            key.field(module.sha256.as_str().as_bytes());
        }
        let digest = key.finish();
        let path = self.cache("initramfs").join(format!("{digest}.cpio"));
        let _lock = self.lock("initramfs")?;
        let cached = path.is_file();
        if !cached {
            let scratch = self.scratch()?;
            let target = scratch.path().join("initramfs");
            let file = File::create_new(&target).map_err(Error::io("creating", &target))?;
            let archive = build(kernel, &agent_bytes, &modules)?;
            (&file).write_all(&archive).map_err(Error::io("writing", &target))?;
            scratch.publish("initramfs", &path)?;
        }
        let size = std::fs::metadata(&path).map_err(Error::io("looking at", &path))?.len();
        Ok(Initramfs { path, digest, size, cached })
    }
}

fn select<'a>(kernel: &'a Kernel, extra: &[&str]) -> Vec<&'a ModuleFile> {
    let mut modules: Vec<&ModuleFile> = kernel.manifest.modules.iter().collect();
    for name in extra {
        for module in kernel.manifest.on_demand.get(*name).into_iter().flatten() {
            if modules.iter().all(|m| m.name != module.name) {
                modules.push(module);
            }
        }
    }
    modules
}

struct Archive {
    out: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let entry = newc::Builder::new(path.trim_start_matches('/'))
            .ino(self.inode)
            .mode(mode)
            .nlink(1)
            .rdev_major(device.0)
            .rdev_minor(device.1);
        let mut writer = entry.write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish().map(drop)
    }
}

fn build(kernel: &Kernel, agent: &[u8], modules: &[&ModuleFile]) -> Result<Vec<u8>> {
    let mut contents = Vec::new();
    for module in modules {
        let path = kernel.module_path(module);
        let content = std::fs::read(&path).map_err(Error::io("reading the module", &path))?;
        if Digest::of(&content) != module.sha256 {
            return Err(Error::archive(&path, "it is not what was imported: remove the kernel and import it again"));
        }
        contents.push((module.name.as_str(), content));
    }
    pack(agent, &contents).map_err(Error::io("packing the initramfs of", &kernel.directory))
}

fn pack(agent: &[u8], modules: &[(&str, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let none = (0, 0);
    let mut archive = Archive { out: Vec::new(), inode: 0 };
    for directory in ["dev", "proc", "sys", "run", "casemate", MODULES_DIR] {
        archive.add(directory, DIRECTORY, b"", none)?;
    }
    // The kernel opens /dev/console as stdio of /init before anything is mounted.
    archive.add("dev/console", CHAR_DEVICE, b"", (5, 1))?;
    archive.add("dev/null", CHAR_DEVICE | 0o066, b"", (1, 3))?;
    archive.add("init", EXECUTABLE, agent, none)?;
    let mut list = String::new();
    for (name, content) in modules {
        let file = format!("{name}.ko");
        archive.add(&format!("{MODULES_DIR}/{file}"), PLAIN, content, none)?;
        list.push_str(&file);
        list.push('\n');
    }
    archive.add(MODULES_LIST_PATH, PLAIN, list.as_bytes(), none)?;
    let mut out = newc::trailer(archive.out)?;
    out.resize(out.len().next_multiple_of(PAGE), 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_the_same_bytes_twice_and_reads_back() {
        let modules = vec![("b", b"two".to_vec()), ("a", b"one".to_vec())];
        let first = pack(b"agent", &modules).unwrap();
        assert_eq!(first, pack(b"agent", &modules).unwrap());
        assert_eq!(first.len() % PAGE, 0);
        let mut reader = &first[..];
        let mut seen = Vec::new();
        loop {
            let mut entry = newc::Reader::new(reader).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            let mut content = Vec::new();
            io::Read::read_to_end(&mut entry, &mut content).unwrap();
            seen.push((entry.entry().name().to_owned(), entry.entry().mode(), content));
            reader = entry.finish().unwrap();
        }
        let find = |name: &str| seen.iter().find(|(n, ..)| n == name).unwrap();
        assert_eq!(find("init").2, b"agent");
        assert_eq!(find("init").1, EXECUTABLE);
        assert_eq!(find("casemate/modules.list").2, b"b.ko\na.ko\n");
        assert_eq!(find("casemate/modules/a.ko").2, b"one");
        assert_eq!(find("dev/null").1, 0o020_666);
    }
}
