//! Reading other managers' files: bounded, and what cannot be read or parsed is told.
//!
//! Called by `libvirt` and `containers`. A place that does not exist is a manager that is not installed.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::in_use::InUse;

/// More files of one directory than this are not looked at.
const MAX_FILES: usize = 16_384;

/// Calls `take` with each regular file of `dir` whose name ends in `suffix`; its error becomes a warning.
pub(crate) fn each_file(
    dir: &Path,
    suffix: &str,
    max: u64,
    in_use: &mut InUse,
    take: impl Fn(&Path, &[u8], &mut InUse) -> Result<(), String>,
) {
    for name in entries(dir, in_use).into_iter().filter(|name| name.ends_with(suffix)) {
        let path = dir.join(name);
        let done = match read(&path, max) {
            Ok(Some(bytes)) => take(&path, &bytes, in_use),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = done {
            in_use.warn(format!("{}: {why}: levels named there are not known", path.display()));
        }
    }
}

/// The names in a directory; none where it does not exist.
pub(crate) fn entries(dir: &Path, in_use: &mut InUse) -> Vec<String> {
    let listed = fs::read_dir(dir)
        .and_then(|all| all.take(MAX_FILES + 1).map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>());
    match listed {
        Ok(names) => {
            if names.len() > MAX_FILES {
                in_use.warn(format!("{}: only {MAX_FILES} files of it were looked at", dir.display()));
            }
            names.into_iter().take(MAX_FILES).filter_map(|name| name.into_string().ok()).collect()
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Vec::new(),
        Err(e) => {
            in_use.warn(format!("{}: {e}: levels named there are not known", dir.display()));
            Vec::new()
        }
    }
}

/// A regular file's bytes; `None` for one that vanished or is something else.
fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    // NONBLOCK: a FIFO must not hold us up
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ELOOP) => return Ok(None),
        Err(e) => return Err(e),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(None);
    }
    if meta.len() > max {
        return Err(io::Error::other(format!("{} bytes are more than its manager writes", meta.len())));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(max + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// A name for people: short, without control characters.
pub(crate) fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}
