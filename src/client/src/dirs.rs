//! Where Casemate keeps its state, and where its other programs are.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const LIBEXEC: &str = "/usr/libexec/casemate";

/// The run directory (volatile) and the state directory (kernels, images, caches).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    pub run: PathBuf,
    pub state: PathBuf,
}

impl Default for Dirs {
    fn default() -> Self {
        Dirs { run: "/run/casemate".into(), state: "/var/lib/casemate".into() }
    }
}

impl Dirs {
    /// `CASEMATE_RUN_DIR` and `CASEMATE_STATE_DIR`, else the defaults.
    pub fn from_env() -> Dirs {
        let set = |name: &str, default: PathBuf| match std::env::var_os(name) {
            // The jailer takes absolute paths only.
            Some(value) if !value.is_empty() => std::path::absolute(&value).unwrap_or_else(|_| PathBuf::from(value)),
            _ => default,
        };
        let Dirs { run, state } = Dirs::default();
        Dirs { run: set("CASEMATE_RUN_DIR", run), state: set("CASEMATE_STATE_DIR", state) }
    }

    /// Directory of one sandbox.
    pub fn sandbox(&self, name: &str) -> PathBuf {
        self.run.join("vms").join(name)
    }
}

/// One of our programs: beside the running one, else in `/usr/libexec/casemate`.
pub fn program(name: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_path_buf));
    beside
        .into_iter()
        .chain([PathBuf::from(LIBEXEC)])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::NoProgram { program: name.into(), fallback: LIBEXEC.into() })
}
