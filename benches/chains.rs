//! Chains of images: opening one, and reading 4 KiB through it, beside a raw image and beside QEMU in the same run.
//!
//! All data but a last cluster is in the base: each read passes an L2 table of every image above it, which is the worst
//! that a chain can cost.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use casemate_storage::qcow2::{NewImage, create};
use casemate_storage::{BlockBackend, ChainDisk, Format, RawDisk};

use crate::jail::AnyError;
use crate::table::{Samples, Table};

const SIZE: u64 = 256 << 20;
const READ: u64 = 4096;
/// Odd, so that the reads meet every place before they come back (`qemu-img bench -S` goes the same way).
const STEP: u64 = 4096 * 4099;
const READS: u64 = 20_000;

pub fn chains(dir: &Path, runs: usize, csv: &mut String) -> Result<(), AnyError> {
    let place = dir.join("chains");
    std::fs::create_dir_all(&place)?;
    let base = place.join("0.img");
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n >> 9) as u8 | 1).collect();
    std::fs::write(&base, bytes)?;
    let mut images = vec![base.clone()];
    for n in 1..16 {
        let path = place.join(format!("{n}.qcow2"));
        let below = images.last().and_then(|p| p.to_str()).ok_or("a path")?;
        let format = if n == 1 { "raw" } else { "qcow2" };
        create(
            &File::create_new(&path)?,
            &NewImage { size: SIZE, backing: Some((below, format)), ..NewImage::default() },
        )?;
        images.push(path);
        // One cluster of its own, so that each image has an L2 table to look into.
        let mut disk = ChainDisk::open(opened(&images.iter().rev().cloned().collect::<Vec<_>>(), true)?, false)?;
        disk.write_at(SIZE - (64 << 10), &[1; 64 << 10])?;
        disk.close()?;
    }
    let title =
        format!("Chains of images, all data in the base, on tmpfs: median (least..most) of {runs}, rows in turns");
    let columns = ["open, us", "read 4 KiB, us", "QEMU: a process that opens, us", "QEMU: read 4 KiB, us"];
    let mut table = Table::new(title, &columns, 2);
    let depths = [1, 4, 16];
    let mut rows: Vec<Vec<Samples>> = depths.iter().map(|_| vec![Samples::default(); 4]).collect();
    for _ in 0..runs.min(20) {
        for (depth, row) in depths.iter().zip(&mut rows) {
            let chain: Vec<PathBuf> = images[..*depth].iter().rev().cloned().collect();
            let (opened, read) = ours(&chain)?;
            row[0].push(opened);
            row[1].push(read);
            if let Some((opened, read)) = qemus(&chain)? {
                row[2].push(opened);
                row[3].push(read);
            }
        }
    }
    for (depth, row) in depths.iter().zip(rows) {
        let name = if *depth == 1 { "1 image, raw".into() } else { format!("{depth} images, qcow2 over raw") };
        table.row(name, row.into_iter().map(Some).collect());
    }
    table.show(csv);
    std::fs::remove_dir_all(&place)?;
    Ok(())
}

/// Top first; `write` opens the top for writing.
fn opened(chain: &[PathBuf], write: bool) -> std::io::Result<Vec<(File, Format)>> {
    let format = |path: &Path| if path.extension().is_some_and(|e| e == "img") { Format::Raw } else { Format::Qcow2 };
    let open = |(n, path): (usize, &PathBuf)| {
        Ok((File::options().read(true).write(write && n == 0).open(path)?, format(path)))
    };
    chain.iter().enumerate().map(open).collect()
}

fn ours(chain: &[PathBuf]) -> Result<(f64, f64), AnyError> {
    let begin = Instant::now();
    let mut disk: Box<dyn BlockBackend> = match chain {
        [raw] => Box::new(RawDisk::new(File::open(raw)?, true)?),
        _ => Box::new(ChainDisk::open(opened(chain, false)?, true)?),
    };
    let took = begin.elapsed().as_secs_f64() * 1e6;
    let mut buf = [0; READ as usize];
    let begin = Instant::now();
    for n in 0..READS {
        disk.read_at(n * STEP % (SIZE - READ) / READ * READ, &mut buf)?;
    }
    let read = begin.elapsed().as_secs_f64() * 1e6 / READS as f64;
    if buf[0] == 0 {
        return Err("the base was not read".into());
    }
    Ok((took, read))
}

/// `None` where qemu-utils is not installed.
fn qemus(chain: &[PathBuf]) -> Result<Option<(f64, f64)>, AnyError> {
    let top = chain.first().and_then(|p| p.to_str()).ok_or("a path")?;
    let format = if chain.len() == 1 { "raw" } else { "qcow2" };
    let begin = Instant::now();
    let Ok(output) = Command::new("qemu-io").args(["-r", "-f", format, "-c", "quit", top]).output() else {
        return Ok(None);
    };
    let opened = begin.elapsed().as_secs_f64() * 1e6;
    if !output.status.success() {
        return Err(format!("qemu-io: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let (reads, step) = (READS.to_string(), STEP.to_string());
    let arguments = ["bench", "-f", format, "-c", &reads, "-d", "1", "-s", "4096", "-S", &step, "-t", "writeback", top];
    let output = Command::new("qemu-img").args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let seconds =
        said.split("Run completed in ").nth(1).and_then(|s| s.split(' ').next()).and_then(|s| s.parse::<f64>().ok());
    let seconds =
        seconds.ok_or_else(|| format!("qemu-img bench: {said}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Some((opened, seconds * 1e6 / READS as f64)))
}
