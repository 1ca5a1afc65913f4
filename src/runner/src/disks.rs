//! Disks: inherited descriptors to images, as the plan declares them.

use std::fs::File;

use casemate_plan::DiskPlan;
use casemate_spec::DiskFormat;
use casemate_storage::{BlockBackend, ChainDisk, Format, RawDisk};

use crate::error::Error;
use crate::input::Table;
use crate::machine::DEVICES;

/// Takes the disk's descriptors and builds its image or chain. Headers that do not agree with the plan end the start,
/// before the first guest instruction.
pub fn open(disk: &DiskPlan, fds: &mut Table) -> Result<Box<dyn BlockBackend>, Error> {
    let failed = |error: &dyn std::error::Error| {
        let Error { step, why } = Error::new(DEVICES, error);
        Error { step, why: format!("disk '{}': {why}", disk.serial) }
    };
    let top = File::from(fds.take(&disk.fd)?);
    if disk.format == DiskFormat::Raw && disk.backing.is_empty() {
        return Ok(Box::new(RawDisk::new(top, disk.read_only).map_err(|e| failed(&e))?));
    }
    let mut images = vec![(top, format(disk.format))];
    for layer in &disk.backing {
        images.push((File::from(fds.take(&layer.fd)?), format(layer.format)));
    }
    Ok(Box::new(ChainDisk::open(images, disk.read_only).map_err(|e| failed(&e))?))
}

fn format(format: DiskFormat) -> Format {
    match format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    }
}
