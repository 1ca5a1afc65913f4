//! The guest's configuration, from the spec: what the agent is told in its initramfs.

use casemate_agent_protocol::{Attach, DeviceRef, FsType, GuestConfig, Mount, Overlay, RootFs};
use casemate_spec::{Boot, Disk, Process, Root, RootSource, SandboxSpec};

use crate::error::StepFailed;

const STAGE: &str = "write the guest's configuration";
/// How long a foreground guest waits for its client.
const ATTACH_MS: u64 = 30_000;

/// JSON for the agent; `None` for a bare guest.
pub fn config(spec: &SandboxSpec, name: &str) -> Result<Option<Vec<u8>>, StepFailed> {
    let Boot::Agent { root, process, .. } = spec.boot() else { return Ok(None) };
    let mut config = GuestConfig::new(process.argv.clone());
    config.env = process.env.clone();
    config.cwd = process.cwd.clone();
    config.tty = process.tty;
    config.stdin = process.interactive;
    config.user = user(process)?;
    // A host name has no underscore (RFC 1123); a sandbox name may.
    config.hostname = Some(spec.hostname().map_or(name, |h| h.as_str()).replace('_', "-"));
    config.root = root_fs(root)?;
    config.mounts = spec.disks().iter().filter_map(mount).collect::<Result<_, _>>()?;
    config.attach = if process.detach { Attach::Detached } else { Attach::Wait { timeout_ms: ATTACH_MS } };
    config.to_json().map(Some).map_err(|e| StepFailed::stage(STAGE, e))
}

fn user(process: &Process) -> Result<casemate_agent_protocol::User, StepFailed> {
    match &process.user {
        Some(text) => text.parse().map_err(|e| StepFailed::stage(STAGE, e)),
        None => Ok(Default::default()),
    }
}

fn root_fs(root: &Root) -> Result<RootFs, StepFailed> {
    let RootSource::Image { fstype, .. } = &root.source else {
        return Err(StepFailed::because(STAGE, "the root is not an image yet; the client makes one of it"));
    };
    let overlay = (!root.writable).then(|| Overlay { size: root.overlay.map(|size| size.bytes()) });
    Ok(RootFs {
        device: DeviceRef::Serial("root".into()),
        fstype: file_system(fstype)?,
        read_only: !root.writable,
        overlay,
    })
}

fn file_system(name: &str) -> Result<FsType, StepFailed> {
    match name {
        "erofs" => Ok(FsType::Erofs),
        "ext4" => Ok(FsType::Ext4),
        "squashfs" => Ok(FsType::Squashfs),
        other => Err(StepFailed::because(STAGE, format!("file system {other:?} is not known"))),
    }
}

fn mount(disk: &Disk) -> Option<Result<Mount, StepFailed>> {
    let (target, fstype) = disk.mount.as_ref()?;
    Some(file_system(fstype).map(|fstype| Mount::Disk {
        device: DeviceRef::Serial(disk.id.as_str().into()),
        fstype,
        target: target.as_str().into(),
        read_only: disk.read_only,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_spec::parse;

    fn spec(text: &str) -> SandboxSpec {
        SandboxSpec::try_from(parse::toml(text).unwrap()).unwrap()
    }

    #[test]
    fn the_agent_is_told_what_was_asked() {
        let text = "command = ['id', '-u']\nuser = '7:8'\ncwd = '/tmp'\nenv = { A = '1' }\n\
                    root = { image = '/r', fstype = 'erofs', overlay = '64M' }\n\
                    disks = [{ id = 'd', path = '/d', format = 'raw', mount = '/mnt', fstype = 'ext4' }]";
        let config = GuestConfig::from_json(&config(&spec(text), "a_b").unwrap().unwrap()).unwrap();
        assert_eq!(config.argv, ["id", "-u"]);
        assert_eq!(config.hostname.as_deref(), Some("a-b"));
        assert_eq!(config.root.overlay, Some(Overlay { size: Some(64 << 20) }));
        assert_eq!(config.mounts[0].target(), "/mnt");
        assert!(matches!(config.attach, Attach::Wait { .. }));
    }

    #[test]
    fn a_bare_guest_has_none_and_an_unmade_root_is_refused() {
        assert!(config(&spec("bare = true\nkernel = '/k'"), "a").unwrap().is_none());
        assert!(config(&spec("command = ['x']\nroot = { dir = '/r' }"), "a").is_err());
    }
}
