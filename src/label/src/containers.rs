//! Labels of containers, from containers-storage: podman, CRI-O and Buildah write a container's labels down when they
//! create it, long before and long after it runs.
//!
//! Trust: root's JSON, parsed as hostile text. `flags.ProcessLabel` and `flags.MountLabel` of each container count
//! (containers/storage, `store.go`). Out of reach: the storage of rootless users (their home directories; their
//! *running* containers are seen as processes), containerd (its database is not meant for others) and docker.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::context::Context;
use crate::in_use::{Holder, InUse};
use crate::managers;

/// The storage, and the part of it that does not outlive a boot.
pub const PLACES: [&str; 2] = ["/var/lib/containers/storage", "/run/containers/storage"];
const MAX_FILE: u64 = 64 << 20;

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    flags: Option<Flags>,
}

#[derive(Deserialize, Default)]
struct Flags {
    #[serde(rename = "ProcessLabel", default)]
    process: String,
    #[serde(rename = "MountLabel", default)]
    mount: String,
}

pub(crate) fn scan(root: &Path, in_use: &mut InUse) {
    // one directory per driver: overlay-containers, vfs-containers
    for driver in drivers(root, in_use) {
        managers::each_file(&driver, "containers.json", MAX_FILE, in_use, |path, bytes, in_use| {
            if bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(());
            }
            let containers: Vec<Container> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
            for Container { id, names, flags } in containers {
                let Flags { process, mount } = flags.unwrap_or_default();
                let name = names.unwrap_or_default().into_iter().next().unwrap_or(id);
                let holder = Holder::Manager { manager: "container", name: managers::plain(&name), file: path.into() };
                let both = [&process, &mount].into_iter().filter(|l| !l.is_empty());
                for label in if process == mount { both.take(1) } else { both.take(2) } {
                    in_use.add(label.parse::<Context>().map_err(|e| e.to_string())?, holder.clone());
                }
            }
            Ok(())
        });
    }
}

fn drivers(root: &Path, in_use: &mut InUse) -> Vec<PathBuf> {
    let is_driver = |name: &str| name.ends_with("-containers");
    managers::entries(root, in_use).into_iter().filter(|name| is_driver(name)).map(|name| root.join(name)).collect()
}
