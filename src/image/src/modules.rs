//! Which kernel modules a guest needs, and in which order they load.
use crate::compress::{self, Bounded};
use crate::elf;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const MAX_MODULE: u64 = 64 << 20;

/// Without these a guest does not start; the text is what a user reads when one is missing.
pub(crate) const REQUIRED: &[(&str, &str)] = &[
    ("virtio_mmio", "virtio-mmio (CONFIG_VIRTIO_MMIO)"),
    ("virtio_blk", "virtio disks (CONFIG_VIRTIO_BLK)"),
    ("vmw_vsock_virtio_transport", "virtio vsock (CONFIG_VIRTIO_VSOCKETS)"),
    ("overlay", "overlayfs (CONFIG_OVERLAY_FS)"),
    ("erofs", "EROFS (CONFIG_EROFS_FS)"),
];
/// Loaded too where they exist.
pub(crate) const WANTED: &[&str] = &["virtio_console", "virtio_rng", "pvpanic_mmio"];
/// Kept in the store, loaded only when a configuration names the file system.
pub(crate) const ON_DEMAND: &[&str] = &["ext4", "squashfs", "xfs", "btrfs", "virtio_net", "virtiofs"];

/// A module's name: its file's name without directory and suffixes, with underscores.
pub(crate) fn module_name(file_name: &str) -> Option<String> {
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].into_iter().find_map(|s| file_name.strip_suffix(s))?;
    Some(stem.replace('-', "_"))
}

/// The files of one kernel's modules, by module name, and the names of what is built in.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModuleSet {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    loaded: BTreeMap<String, Module>,
}

#[derive(Debug, Clone)]
pub(crate) struct Module {
    pub content: Vec<u8>,
    depends: Vec<String>,
}

impl ModuleSet {
    pub fn add_file(&mut self, name: String, path: PathBuf) {
        self.files.insert(name, path);
    }

    /// The content of a modules.builtin file.
    pub fn add_builtin(&mut self, list: &str) {
        let names = list.lines().filter_map(|line| module_name(line.rsplit('/').next()?));
        self.builtin.extend(names);
    }

    /// Collects below `/lib/modules/RELEASE`.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let mut set = ModuleSet::default();
        if let Ok(list) = std::fs::read_to_string(directory.join("modules.builtin")) {
            set.add_builtin(&list);
        }
        let mut pending = vec![directory.join("kernel")];
        while let Some(next) = pending.pop() {
            for entry in std::fs::read_dir(&next).map_err(Error::io("reading the directory", &next))? {
                let entry = entry.map_err(Error::io("reading the directory", &next))?;
                let kind = entry.file_type().map_err(Error::io("looking at", &entry.path()))?;
                match (kind.is_dir(), entry.file_name().to_str().and_then(module_name)) {
                    (true, _) => pending.push(entry.path()),
                    (false, Some(name)) if kind.is_file() => set.add_file(name, entry.path()),
                    _ => {}
                }
            }
        }
        Ok(set)
    }

    /// Required drivers that are neither built in nor there as a file.
    pub fn missing(&self) -> Vec<String> {
        let has = |name: &str| self.builtin.contains(name) || self.files.contains_key(name);
        REQUIRED.iter().filter(|(name, _)| !has(name)).map(|(_, text)| (*text).to_owned()).collect()
    }

    /// `name` and all it needs, in load order, appended to `order` where not yet there. Built-in or absent: nothing.
    pub fn resolve(&mut self, name: &str, order: &mut Vec<String>) -> Result<()> {
        self.visit(name, order, &mut BTreeSet::new())
    }

    fn visit(&mut self, name: &str, order: &mut Vec<String>, visiting: &mut BTreeSet<String>) -> Result<()> {
        let known = self.builtin.contains(name) || order.iter().any(|n| n == name);
        // A circle of dependencies cannot load anyway; it must not keep us here.
        if known || !visiting.insert(name.to_owned()) || visiting.len() > 64 {
            return Ok(());
        }
        let Some(path) = self.files.get(name).cloned() else { return Ok(()) };
        if !self.loaded.contains_key(name) {
            let module = self.read(&path)?;
            self.loaded.insert(name.to_owned(), module);
        }
        for dependency in self.loaded.get(name).map(|m| m.depends.clone()).unwrap_or_default() {
            self.visit(&dependency, order, visiting)?;
        }
        order.push(name.to_owned());
        visiting.remove(name);
        Ok(())
    }

    /// Decompressed, as it is loaded.
    pub fn content(&self, name: &str) -> Option<&[u8]> {
        self.loaded.get(name).map(|m| m.content.as_slice())
    }

    fn read(&self, path: &Path) -> Result<Module> {
        let file = File::open(path).map_err(Error::io("opening", path))?;
        let reader: Box<dyn Read> = match path.extension().and_then(|e| e.to_str()) {
            Some("xz") => compress::xz(file),
            Some("zst") => compress::zstd(file).map_err(Error::io("reading", path))?,
            Some("gz") => compress::gzip(file),
            _ => Box::new(file),
        };
        let mut content = Vec::new();
        Bounded::new(reader, MAX_MODULE).read_to_end(&mut content).map_err(|e| Error::archive(path, e))?;
        let info = elf::modinfo(&content).ok_or_else(|| Error::archive(path, "no module description in it"))?;
        Ok(Module { depends: self.dependencies(&info), content })
    }

    /// `depends=a,b`, and of `softdep=pre: x y` what exists: a crypto algorithm is asked for by its generic name, and
    /// there is no modprobe in the initramfs to find it.
    fn dependencies(&self, info: &[(String, String)]) -> Vec<String> {
        let mut names = Vec::new();
        for (key, value) in info {
            match key.as_str() {
                "depends" => names.extend(value.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_"))),
                "softdep" => {
                    let pre = value.strip_prefix("pre:").unwrap_or("");
                    let soft = pre.split_whitespace().take_while(|w| *w != "post:").map(|w| w.replace('-', "_"));
                    names.extend(soft.filter_map(|name| self.provider(&name)));
                }
                _ => {}
            }
        }
        names
    }

    fn provider(&self, name: &str) -> Option<String> {
        if self.files.contains_key(name) {
            return Some(name.to_owned());
        }
        let generic = format!("{name}_generic");
        (!self.builtin.contains(&generic) && self.files.contains_key(&generic)).then_some(generic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(module_name("virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("erofs.ko").as_deref(), Some("erofs"));
        assert_eq!(module_name("modules.dep"), None);
    }

    fn set(modules: &[(&str, &[&str])]) -> ModuleSet {
        let mut set = ModuleSet::default();
        for (name, depends) in modules {
            set.add_file((*name).into(), PathBuf::from("/nonexistent"));
            let depends = depends.iter().map(|d| (*d).to_owned()).collect();
            set.loaded.insert((*name).into(), Module { content: Vec::new(), depends });
        }
        set
    }

    #[test]
    fn order_circles_and_builtin() {
        let mut modules = set(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &["a", "x"]), ("d", &[])]);
        modules.add_builtin("kernel/lib/x.ko\nkernel/drivers/virtio/virtio_mmio.ko\n");
        let mut order = Vec::new();
        for name in ["a", "d", "b", "x", "absent"] {
            modules.resolve(name, &mut order).unwrap();
        }
        assert_eq!(order, ["c", "b", "a", "d"]);
        assert_eq!(modules.missing().len(), REQUIRED.len() - 1);
    }

    #[test]
    fn soft_dependencies_find_the_generic_provider() {
        let modules = set(&[("crc32c_generic", &[]), ("lz4", &[])]);
        let info = |v: &str| vec![("softdep".to_owned(), v.to_owned())];
        assert_eq!(modules.dependencies(&info("pre: crc32c none post: lz4")), ["crc32c_generic"]);
    }
}
