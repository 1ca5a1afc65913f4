//! The empty root: a read-only tmpfs with nothing in it, the host's tree detached.

use crate::confined::{Finding, held};
use crate::{Confined, Error, Result};
use casemate_plan::Layer;
use casemate_sys::path::{self, OFlags};
use casemate_sys::{mount, rustix};
use std::os::fd::AsFd as _;
use std::path::Path;

const LAYER: Layer = Layer::Mounts;

/// Can we make a mount at all (CAP_SYS_ADMIN and the descriptor-based API, Linux 5.2)?
pub fn probe() -> bool {
    mount::empty_root().is_ok()
}

/// Private propagation, empty root, pivot. The caller was born into a mount namespace of its own.
/// Before Landlock: a landlocked task may not mount.
pub fn apply() -> Result<Confined> {
    mount::make_private().map_err(Error::call(LAYER))?;
    let root = mount::empty_root().map_err(Error::call(LAYER))?;
    mount::pivot_into(root.as_fd()).map_err(Error::call(LAYER))?;
    drop(root);
    held(LAYER, attest())
}

/// Root and working directory are one empty, read-only tmpfs. Before Landlock only: afterwards the
/// root cannot be opened (which is then the control that counts).
pub fn attest() -> Vec<Finding> {
    let look = || -> casemate_sys::Result<Vec<Finding>> {
        let root = path::open_no_symlinks(Path::new("/"), OFlags::RDONLY | OFlags::DIRECTORY)?;
        let here = path::open_no_symlinks(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
        let magic = path::fs_magic(&root)?;
        let (root_id, here_id) = (path::identity(&root)?, path::identity(&here)?);
        let entries = casemate_sys::Attempt::attempt(rustix::fs::Dir::read_from(&root), "list the root")?;
        let entries = entries.flatten().filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
        let created = path::create_dir(root.as_fd(), "probe", 0o700).err().and_then(|error| error.errno());
        Ok(vec![
            Finding::equal(LAYER, "file system of /", format!("{:x}", path::TMPFS_MAGIC), format!("{magic:x}")),
            Finding::equal(LAYER, "entries of /", "0", entries.count().to_string()),
            Finding::equal(
                LAYER,
                "working directory",
                format!("{}:{}", root_id.dev, root_id.ino),
                format!("{}:{}", here_id.dev, here_id.ino),
            ),
            Finding::equal(
                LAYER,
                "creating in /",
                "EROFS",
                created.map_or("allowed".into(), casemate_sys::process::errno_name),
            ),
        ])
    };
    look().unwrap_or_else(|error| vec![Finding::unreadable(LAYER, "the root", &error)])
}
