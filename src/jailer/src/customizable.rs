//! `contexts/customizable_types`: types that `restorecon` without -F leaves alone, so that an administrator's
//! `restorecon -R` over a directory of images does not take the label off a running VM's disk (libvirt's types stand
//! there on Fedora). The file is the distribution's, outside the policy store: no module can add to it.
//!
//! Called by `policy install`, which runs in its caller's domain; the jailer's own may not write there.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

/// Types whose files carry a label that only a running VM explains.
pub const OURS: [&str; 2] = ["casemate_image_t", "casemate_content_t"];

pub fn file() -> Option<PathBuf> {
    let contexts = casemate_label::contexts::ContextFiles::of_host().directory().ok()?;
    Some(contexts.join("customizable_types"))
}

/// Those of [`OURS`] that the file lacks.
pub fn missing(file: &Path) -> io::Result<Vec<&'static str>> {
    let text = read(file)?;
    Ok(OURS.into_iter().filter(|ours| !text.lines().any(|line| line.trim() == *ours)).collect())
}

/// Appends what is missing. True when something was.
pub fn add(file: &Path) -> io::Result<bool> {
    let missing = missing(file)?;
    if missing.is_empty() {
        return Ok(false);
    }
    let mut text = read(file)?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    missing.iter().for_each(|type_| text.extend([type_, "\n"]));
    replace(file, &text).map(|()| true)
}

/// Takes ours away. True when there were any.
pub fn remove(file: &Path) -> io::Result<bool> {
    let text = read(file)?;
    let kept: String = text.split_inclusive('\n').filter(|line| !OURS.contains(&line.trim())).collect();
    if kept == text { Ok(false) } else { replace(file, &kept).map(|()| true) }
}

fn read(file: &Path) -> io::Result<String> {
    match fs::read_to_string(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

/// Whole or not at all: libselinux reads it while others write. Owner and mode stay; the label is the directory's.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("casemate-new");
    let made = fs::File::options().write(true).create(true).truncate(true).open(&new)?;
    let done = (|| {
        io::Write::write_all(&mut &made, text.as_bytes())?;
        match fs::metadata(file) {
            Ok(old) => {
                fchown(&made, Some(old.uid()), Some(old.gid()))?;
                made.set_permissions(old.permissions())?;
            }
            Err(_) => made.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?,
        }
        made.sync_all()?;
        fs::rename(&new, file)
    })();
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svirt_27_our_types_are_added_once_and_nobody_elses_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("customizable_types");
        fs::write(&file, "public_content_t\nswapfile_t").unwrap();
        assert_eq!(missing(&file).unwrap(), OURS);
        assert!(add(&file).unwrap());
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "public_content_t\nswapfile_t\ncasemate_image_t\ncasemate_content_t\n");
        assert!(!add(&file).unwrap(), "once");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
        assert!(remove(&file).unwrap() && !remove(&file).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "public_content_t\nswapfile_t\n");
        // a name that only begins like ours is not ours
        fs::write(&file, "casemate_image_tx\n").unwrap();
        assert_eq!(missing(&file).unwrap(), OURS);
    }

    #[test]
    fn svirt_27_an_absent_file_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("customizable_types");
        assert!(add(&file).unwrap());
        assert_eq!(missing(&file).unwrap(), Vec::<&str>::new());
    }
}
