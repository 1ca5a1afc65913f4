//! Chains of images: what a disk may have below it.
//!
//! The list is the whole truth for the jailer: it opens these paths, in these formats, and follows no name that stands
//! in an image. The runner then checks each image's header against it.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::SpecError;
use crate::sandbox::{Disk, host_path};
use crate::values::{DiskFormat, HostPath};
use crate::wire::{LayerFile, SpecFile};

/// Images of one disk, its own included.
const MAX_IMAGES: usize = 16;
/// Images below disks, in one sandbox: each is a descriptor and a cache of the runner's.
const MAX_LAYERS: usize = 64;

/// An image below another one; read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    pub path: HostPath,
    pub format: DiskFormat,
}

/// The images below one of format `top`. None given is none there: the client has filled in what it found.
pub(crate) fn backing(field: &str, top: DiskFormat, asked: Option<&[LayerFile]>) -> Result<Vec<ImageLayer>, SpecError> {
    let asked = asked.unwrap_or_default();
    let refused = |problem: &str, remedy: &str| Err(SpecError::field(format!("{field}.backing"), problem, remedy));
    if top == DiskFormat::Raw && !asked.is_empty() {
        return refused("a raw image has nothing below it", "leave it out, or name the image's real format");
    }
    if asked.len() >= MAX_IMAGES {
        return refused("the chain is longer than 16 images", "shorten it, for example with `qemu-img rebase`");
    }
    let mut layers = Vec::with_capacity(asked.len());
    for (at, layer) in asked.iter().enumerate() {
        if layer.format == DiskFormat::Raw && at + 1 != asked.len() {
            return refused(
                "a raw image is not the last of the chain",
                "it has nothing below it: name its real format",
            );
        }
        layers.push(ImageLayer {
            path: host_path(format!("{field}.backing[{at}].path"), &layer.path)?,
            format: layer.format,
        });
    }
    let paths: BTreeSet<_> = layers.iter().map(|layer| &layer.path).collect();
    if paths.len() != layers.len() {
        return refused("the chain comes back to an image", "give each image once");
    }
    Ok(layers)
}

/// What chains of one sandbox may not do to each other: nobody writes to an image that another disk rests on.
pub(crate) fn across(file: &SpecFile, disks: &[Disk]) -> Result<(), SpecError> {
    let root = file.root.as_ref();
    let root_layers = root.and_then(|root| root.backing.as_deref()).unwrap_or_default();
    let below: BTreeSet<&Path> = root_layers
        .iter()
        .chain(file.disks.iter().flat_map(|disk| disk.backing.as_deref().unwrap_or_default()))
        .map(|layer| Path::new(&layer.path))
        .collect();
    let written = |at: usize, disk: &Disk| {
        let path = disk.path.as_path();
        (!disk.read_only && below.contains(path)).then(|| (format!("disks[{at}].path"), path.display().to_string()))
    };
    let root_image = root.filter(|root| root.writable).and_then(|root| root.image.clone());
    let root_image = root_image.filter(|path| below.contains(Path::new(path))).map(|path| ("root.image".into(), path));
    if let Some((field, path)) = disks.iter().enumerate().find_map(|(at, disk)| written(at, disk)).or(root_image) {
        let problem = format!("{path} lies below another disk and would be written");
        return Err(SpecError::field(field, problem, "make it read_only, or give it an overlay of its own"));
    }
    let layers = disks.iter().map(|disk| disk.backing.len()).sum::<usize>() + root_layers.len();
    if layers > MAX_LAYERS {
        return Err(SpecError::field("disks", "more than 64 images below them", "use shorter chains, or fewer disks"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::parse;
    use crate::sandbox::SandboxSpec;
    use crate::values::DiskFormat;

    fn spec(disks: &str) -> Result<SandboxSpec, String> {
        let text = format!("bare = true\nkernel = '/k'\n{disks}");
        let file = parse::toml(&text).map_err(|e| e.to_string())?;
        SandboxSpec::try_from(file).map_err(|e| e.to_string())
    }

    #[test]
    fn svirt_18_a_chain_is_an_explicit_list_of_named_formats() {
        let spec = spec(
            "[[disks]]\nid = 'd'\npath = '/top'\nformat = 'qcow2'\n\
             backing = [{ path = '/b1', format = 'qcow2' }, { path = '/base', format = 'raw' }]",
        );
        let spec = spec.unwrap();
        let layers: Vec<_> = spec.disks()[0].backing.iter().map(|l| (l.path.to_string(), l.format)).collect();
        assert_eq!(layers, [("/b1".into(), DiskFormat::Qcow2), ("/base".into(), DiskFormat::Raw)]);
    }

    #[test]
    fn svirt_18_impossible_chains_are_refused() {
        let long: Vec<String> = (0..16).map(|n| format!("{{ path = '/b{n}', format = 'qcow2' }}")).collect();
        let long = format!("format = 'qcow2'\nbacking = [{}]", long.join(","));
        let cases = [
            ("format = 'raw'\nbacking = [{ path = '/b', format = 'raw' }]", "nothing below"),
            ("format = 'qcow2'\nbacking = [{ path = '/b' }]", "format"),
            ("format = 'qcow2'\nbacking = [{ path = 'b', format = 'raw' }]", "absolute"),
            ("format = 'qcow2'\nbacking = [{ path = '/a/../b', format = 'raw' }]", ".."),
            ("format = 'qcow2'\nbacking = [{ path = '/b', format = 'vmdk' }]", "vmdk"),
            (
                "format = 'qcow2'\nbacking = [{ path = '/b', format = 'raw' }, { path = '/c', format = 'raw' }]",
                "not the last",
            ),
            (
                "format = 'qcow2'\nbacking = [{ path = '/b', format = 'qcow2' }, { path = '/b', format = 'qcow2' }]",
                "comes back",
            ),
            ("format = 'qcow2'\nbacking = [{ path = '/top', format = 'qcow2' }]", "would be written"),
            ("format = 'qcow2'\nshared = true", "two writers"),
            (long.as_str(), "longer than 16"),
        ];
        for (rest, said) in cases {
            let error = spec(&format!("[[disks]]\nid = 'd'\npath = '/top'\n{rest}")).unwrap_err();
            assert!(error.contains(said), "{rest}: {error}");
        }
    }

    #[test]
    fn svirt_18_two_disks_may_rest_on_one_base_and_neither_may_write_it() {
        let over = |id: &str| {
            format!(
                "[[disks]]\nid = '{id}'\npath = '/{id}'\nformat = 'qcow2'\nbacking = [{{ path = '/base', format = 'raw' }}]\n"
            )
        };
        let both = over("a") + &over("b");
        spec(&both).unwrap();
        let base =
            |read_only: bool| format!("[[disks]]\nid = 'c'\npath = '/base'\nformat = 'raw'\nread_only = {read_only}\n");
        spec(&(both.clone() + &base(true))).unwrap();
        assert!(spec(&(both + &base(false))).unwrap_err().contains("would be written"));
    }
}
