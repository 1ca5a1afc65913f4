//! The loaded policy's own context files: which types libvirt and the container tools use on this host.
//!
//! Trust: files of root's below /etc/selinux and /usr/share/containers, read strictly all the same: what is not a
//! context is an error with its line, never a guess. What they name is then shown to the kernel (`families`), before
//! any file is touched. Called by `families`.
//!
//! | file | form | read as |
//! |---|---|---|
//! | /etc/selinux/config | `SELINUXTYPE=default` | the policy's name (selinux_config(5)) |
//! | contexts/virtual_domain_context | a context per line: with KVM, under TCG | virtual_domain_context(5) |
//! | contexts/virtual_image_context | writable image, read-only content | virtual_image_context(5) |
//! | container contexts, lxc_contexts | `key = "context"` | lxc_contexts(5), go-selinux |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::context::{Context, ContextError};

/// Far more than any of these files has; a larger one is not what it should be.
const MAX_FILE: u64 = 64 << 10;
/// libselinux' own default (src/selinux_config.c) where the configuration names no policy.
const DEFAULT_TYPE: &str = "targeted";

#[derive(Debug, thiserror::Error)]
pub enum ContextsError {
    #[error("{path} does not exist, so {wants} are not known here")]
    Missing { path: PathBuf, wants: &'static str },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than {MAX_FILE} bytes")]
    Large { path: PathBuf },
    #[error("{path}:{line}: {why}")]
    Line { path: PathBuf, line: usize, why: String },
    #[error("{path}:{line}: {source}")]
    Context { path: PathBuf, line: usize, source: ContextError },
    #[error("{path} has no {what}")]
    Lacks { path: PathBuf, what: &'static str },
}

/// The contexts of one family as its files give them, not yet shown to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Of the process that runs a VM under KVM.
    pub process: Context,
    /// Of a writable image.
    pub image: Context,
    /// Of read-only content.
    pub content: Context,
    /// Every context that the files name, for validation: those above and those that are not used here.
    pub named: Vec<Context>,
    /// What had to be assumed because a file does not say it.
    pub assumed: Option<String>,
}

/// Where a host keeps its context files. A value, so that a test can bring its own.
#[derive(Debug, Clone)]
pub struct ContextFiles {
    root: PathBuf,
}

impl ContextFiles {
    pub fn of_host() -> Self {
        Self::below(Path::new("/"))
    }

    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// `/etc/selinux/TYPE/contexts` of the policy that the configuration names.
    pub fn directory(&self) -> Result<PathBuf, ContextsError> {
        let path = self.root.join("etc/selinux/config");
        let text = read(&path, "the policy's context files")?;
        let mut type_ = DEFAULT_TYPE;
        for (at, line) in text.lines().enumerate() {
            let Some(value) = line.trim().strip_prefix("SELINUXTYPE=") else { continue };
            type_ = value.trim();
            let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            if type_.is_empty() || type_.starts_with('.') || !type_.bytes().all(word) {
                let why = format!("SELINUXTYPE {type_:?} is not the name of a policy");
                return Err(ContextsError::Line { path, line: at + 1, why });
            }
        }
        Ok(self.root.join("etc/selinux").join(type_).join("contexts"))
    }

    /// libvirt's types. The second line of the domain file is for emulation (TCG) and MLS policies have none: it is
    /// validated and not used. The image file needs both lines.
    pub fn virt(&self) -> Result<Family, ContextsError> {
        let directory = self.directory()?;
        let domains = directory.join("virtual_domain_context");
        let processes = lines(&domains, "libvirt's domains")?;
        let process = processes.first().cloned();
        let process = process.ok_or(ContextsError::Lacks { path: domains, what: "line: a domain under KVM" })?;
        let images = directory.join("virtual_image_context");
        let objects = lines(&images, "libvirt's image types")?;
        let [image, content] = &objects[..] else {
            return Err(ContextsError::Lacks { path: images, what: "two lines: writable image, read-only content" });
        };
        let (image, content) = (image.clone(), content.clone());
        let named = processes.into_iter().chain(objects).collect();
        Ok(Family { process, image, content, named, assumed: None })
    }

    /// The container tools' types, from the file that go-selinux would take: container-selinux' own, else the policy's.
    /// A policy from before `kvm_process` gets container-selinux' name for it, and says so.
    pub fn container(&self) -> Result<Family, ContextsError> {
        let directory = self.directory()?;
        let places = [
            self.root.join("usr/share/containers/selinux/contexts"),
            directory.join("container_contexts"),
            directory.join("lxc_contexts"),
        ];
        let found = places.iter().find(|path| path.exists()).unwrap_or(&places[2]);
        let mut keys = keys(found, "the container tools' types")?;
        let named: Vec<Context> = keys.values().cloned().collect();
        let lacks = |what| ContextsError::Lacks { path: found.clone(), what };
        let image = keys.remove("file").ok_or_else(|| lacks("'file': the type of writable files"))?;
        let content = keys.remove("ro_file").ok_or_else(|| lacks("'ro_file': the type of read-only files"))?;
        let (process, assumed) = match (keys.remove("kvm_process"), keys.remove("process")) {
            (Some(kvm), _) => (kvm, None),
            (None, Some(plain)) => {
                let kvm = plain.with_type("container_kvm_t").map_err(|source| ContextsError::Context {
                    path: found.clone(),
                    line: 0,
                    source,
                })?;
                let said =
                    format!("{} names no kvm_process; container-selinux' container_kvm_t is taken", found.display());
                (kvm, Some(said))
            }
            (None, None) => return Err(lacks("'kvm_process' nor 'process'")),
        };
        Ok(Family { process, image, content, named, assumed })
    }
}

fn read(path: &Path, wants: &'static str) -> Result<String, ContextsError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => ContextsError::Missing { path: path.into(), wants },
        _ => ContextsError::Read { path: path.into(), source },
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let length = file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if length as u64 > MAX_FILE { Err(ContextsError::Large { path: path.into() }) } else { Ok(text) }
}

/// What of a line counts; comments and blank lines do not.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// One or two contexts, one per line.
fn lines(path: &Path, wants: &'static str) -> Result<Vec<Context>, ContextsError> {
    let text = read(path, wants)?;
    let mut found = Vec::new();
    for (line, word) in words(&text) {
        if found.len() == 2 {
            return Err(ContextsError::Line { path: path.into(), line, why: "a third context".into() });
        }
        found.push(context(path, line, word)?);
    }
    Ok(found)
}

/// `key = "context"`, each key once. Keys that nobody here uses are kept: newer tools add some.
fn keys(path: &Path, wants: &'static str) -> Result<BTreeMap<String, Context>, ContextsError> {
    let text = read(path, wants)?;
    let mut found = BTreeMap::new();
    for (line, word) in words(&text) {
        let bad = |why: &str| ContextsError::Line { path: path.into(), line, why: why.into() };
        let (key, value) = word.split_once('=').ok_or_else(|| bad("not of the form key = \"context\""))?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            return Err(bad("the key has a character outside a-z 0-9 _"));
        }
        let quoted = value.strip_prefix('"').map(|rest| rest.strip_suffix('"').ok_or_else(|| bad("an open quote")));
        let value = quoted.transpose()?.unwrap_or(value);
        if found.insert(key.to_owned(), context(path, line, value)?).is_some() {
            return Err(bad("a key that was given before"));
        }
    }
    Ok(found)
}

fn context(path: &Path, line: usize, text: &str) -> Result<Context, ContextsError> {
    text.parse().map_err(|source| ContextsError::Context { path: path.into(), line, source })
}

#[cfg(test)]
#[path = "contexts_tests.rs"]
mod tests;
