//! Image locks: open-file-description locks (fcntl(2), F_OFD_SETLK), which belong to the open file and not to the
//! process. The jailer takes one on the descriptor that the runner inherits; it ends when the last copy is closed, so
//! no crash leaves one behind.
//!
//! Our lock is one byte at 2^62, past any image. All such locks are advisory, so the neighbours' bytes count too:
//! QEMU holds shared locks on bytes 100 + permission and 200 + permission (block/file-posix.c), libvirt's metadata
//! lock is byte 1 (security_manager.c), held while it relabels. [`foreign_lock`] looks at all of them.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, flock};
use thiserror::Error;

const OUR_BYTE: i64 = 1 << 62;
const LIBVIRT_METADATA: i64 = 1;
/// 100 + the bit number of BLK_PERM_WRITE: shared-locked by every QEMU that may write.
const QEMU_WRITES: i64 = 101;
/// 200 + the same bit: shared-locked by whoever lets nobody else write.
const QEMU_MAY_NOT_WRITE: i64 = 201;
/// 200 + BLK_PERM_RESIZE.
const QEMU_MAY_NOT_RESIZE: i64 = 203;
/// All of QEMU's bytes, 100 + and 200 + permission.
const QEMU_BYTES: (i64, i64) = (100, 200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// For a read-only disk: many may hold it.
    Shared,
    /// For a writable disk: one holder, and nobody shares.
    Exclusive,
}

#[derive(Debug, Error)]
pub enum LockError {
    #[error("the image is in use by another VM; stop that VM, or share the image read-only in both")]
    InUse,
    #[error("the image is in use by QEMU; stop that guest first, or share the image read-only in both")]
    QemuUses,
    #[error("cannot lock the image")]
    Io(#[source] io::Error),
}

/// Locks the open file behind `file`, without waiting. An exclusive lock needs a writable descriptor.
///
/// A QEMU that uses the image in a way that does not go with `mode` is refused; one that starts later is told by the
/// bytes that it looks at itself: nobody else writes or resizes.
pub fn lock_image(file: &File, mode: LockMode) -> Result<(), LockError> {
    set(file, kind(mode), OUR_BYTE)?;
    let (first, count) = match mode {
        LockMode::Exclusive => QEMU_BYTES,
        LockMode::Shared => (QEMU_WRITES, 1),
    };
    if conflicts(file, F_WRLCK, first, count)? {
        return Err(LockError::QemuUses);
    }
    let ours: &[i64] = match mode {
        LockMode::Exclusive => &[QEMU_WRITES, QEMU_MAY_NOT_WRITE, QEMU_MAY_NOT_RESIZE],
        LockMode::Shared => &[QEMU_MAY_NOT_WRITE, QEMU_MAY_NOT_RESIZE],
    };
    ours.iter().try_for_each(|byte| set(file, F_RDLCK, *byte))
}

/// Takes libvirt's metadata lock, for as long as a label is being changed. Needs a writable descriptor.
pub fn lock_metadata(file: &File) -> Result<(), LockError> {
    set(file, F_WRLCK, LIBVIRT_METADATA)
}

pub fn unlock_metadata(file: &File) -> Result<(), LockError> {
    set(file, F_UNLCK, LIBVIRT_METADATA)
}

/// Whether any other open file (a Casemate VM, QEMU, libvirt) holds a lock that speaks against `mode`. Best effort:
/// say it to the user, but hold [`lock_image`] for what must be true.
pub fn foreign_lock(file: &File, mode: LockMode) -> Result<bool, LockError> {
    Ok(match mode {
        LockMode::Exclusive => conflicts(file, F_WRLCK, 0, 0)?,
        LockMode::Shared => conflicts(file, F_RDLCK, 0, 0)? || conflicts(file, F_WRLCK, QEMU_WRITES, 1)?,
    })
}

fn kind(mode: LockMode) -> i32 {
    match mode {
        LockMode::Shared => F_RDLCK,
        LockMode::Exclusive => F_WRLCK,
    }
}

fn range(kind: i32, start: i64, len: i64) -> flock {
    // OFD locks demand l_pid == 0.
    flock { l_type: kind as i16, l_whence: SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

fn set(file: &File, kind: i32, byte: i64) -> Result<(), LockError> {
    use nix::errno::Errno;
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, byte, 1))) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(LockError::InUse),
        Err(e) => Err(LockError::Io(e.into())),
    }
}

fn conflicts(file: &File, kind: i32, start: i64, len: i64) -> Result<bool, LockError> {
    let mut probe = range(kind, start, len);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)).map_err(|e| LockError::Io(e.into()))?;
    Ok(i32::from(probe.l_type) != F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn one_writer_or_many_readers() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [a, b, c] = [open(image.path()), open(image.path()), open(image.path())];
        lock_image(&a, LockMode::Shared).unwrap();
        lock_image(&b, LockMode::Shared).unwrap();
        assert!(matches!(lock_image(&c, LockMode::Exclusive), Err(LockError::InUse)));
        assert!(foreign_lock(&c, LockMode::Exclusive).unwrap());
        assert!(!foreign_lock(&c, LockMode::Shared).unwrap());
        drop((a, b));
        lock_image(&c, LockMode::Exclusive).unwrap();
        let d = open(image.path());
        assert!(matches!(lock_image(&d, LockMode::Shared), Err(LockError::InUse)));
        assert!(foreign_lock(&d, LockMode::Shared).unwrap());
        assert!(!foreign_lock(&c, LockMode::Exclusive).unwrap(), "one's own lock is no conflict");
    }

    #[test]
    fn a_lock_follows_its_inherited_descriptor() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let a = open(image.path());
        lock_image(&a, LockMode::Exclusive).unwrap();
        let inherited = a.try_clone().unwrap();
        drop(a);
        let b = open(image.path());
        assert!(matches!(lock_image(&b, LockMode::Exclusive), Err(LockError::InUse)));
        lock_image(&inherited, LockMode::Exclusive).unwrap();
        drop(inherited);
        lock_image(&b, LockMode::Exclusive).unwrap();
    }

    #[test]
    fn qemu_and_libvirt_are_seen() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [qemu, ours, libvirt] = [open(image.path()), open(image.path()), open(image.path())];
        set(&qemu, F_RDLCK, QEMU_WRITES).unwrap();
        assert!(matches!(lock_image(&ours, LockMode::Shared), Err(LockError::QemuUses)));
        assert!(matches!(lock_image(&ours, LockMode::Exclusive), Err(LockError::QemuUses)));
        assert!(foreign_lock(&ours, LockMode::Shared).unwrap());
        assert!(foreign_lock(&ours, LockMode::Exclusive).unwrap());
        drop(qemu);
        lock_metadata(&libvirt).unwrap();
        assert!(matches!(lock_metadata(&ours), Err(LockError::InUse)));
        assert!(foreign_lock(&ours, LockMode::Exclusive).unwrap());
        unlock_metadata(&libvirt).unwrap();
        lock_metadata(&ours).unwrap();
    }
}
