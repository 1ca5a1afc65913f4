//! Cost of allocation: a level that nobody on the host has, with 0, 1,000 and 10,000 leases held.
//!
//! Beside the ledger, in the same run: what libvirt and go-selinux do, a table in one process's memory, which knows of
//! nobody else; and the parts of "what is in use" that a start asks for. No SELinux is needed: the survey then reads
//! attributes that are not there, from the same files.

use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use casemate_label::{CategoryPair, CategorySet, DEFAULT_UIDS, InUse, Ledger, Owner, Sources};

use crate::jail::AnyError;
use crate::table::{Samples, Table};

const HELD: [usize; 3] = [0, 1_000, 10_000];
const COLUMNS: [&str; 3] = ["0 held", "1,000 held", "10,000 held"];
/// 142 categories make 10,011 pairs: with 10,000 held one in a thousand is free.
const TIGHT: u16 = 142;
const GUESTS: usize = 100;
const IMAGES: usize = 1_000;

pub fn allocation(dir: &Path, runs: usize, csv: &mut String) -> Result<(), AnyError> {
    let owner = Owner::of_self("bench")?;
    let mut memory = [const { None }; 3];
    let (mut pair, mut tight, mut uid) = (memory.clone(), memory.clone(), memory.clone());
    for (column, held) in HELD.into_iter().enumerate() {
        let full = crowd(dir, "wide", held, &CategorySet::ALL, &owner)?;
        memory[column] = Some(in_memory(held, runs));
        pair[column] = Some(leases(&full, &owner, &CategorySet::ALL, runs)?);
        uid[column] = Some(uids(&full, &owner, runs)?);
        let window = (0..TIGHT).map(casemate_label::Category::new).collect::<Result<CategorySet, _>>()?;
        tight[column] = Some(leases(&crowd(dir, "tight", held, &window, &owner)?, &owner, &window, runs)?);
    }
    let title = format!("Cost of allocation, us: median (least..most) of {runs}");
    let mut table = Table::new(title, &COLUMNS, 1);
    table.row("baseline: a table in one process's memory, its own pairs only", memory.to_vec());
    table.row("ledger: lease a pair and release it, any of c0.c1023", pair.to_vec());
    table.row("ledger: the same in a window of 10,011 pairs", tight.to_vec());
    table.row("ledger: lease a uid and release it", uid.to_vec());
    table.show(csv);
    survey(dir, runs, csv)
}

/// A ledger with so many leases, in a run directory of its own.
fn crowd(dir: &Path, name: &str, held: usize, window: &CategorySet, owner: &Owner) -> Result<Ledger, AnyError> {
    let run = dir.join(format!("{name}-{held}"));
    crate::make_private(&run)?;
    let ledger = Ledger::open(&run)?;
    for _ in 0..held {
        ledger.lease_pair(owner, window, &InUse::none())?;
        ledger.lease_uid(owner, DEFAULT_UIDS)?;
    }
    Ok(ledger)
}

fn timed(samples: &mut Samples, what: impl FnOnce() -> Result<(), AnyError>) -> Result<(), AnyError> {
    let begin = Instant::now();
    what()?;
    samples.push(begin.elapsed().as_secs_f64() * 1e6);
    Ok(())
}

fn leases(ledger: &Ledger, owner: &Owner, window: &CategorySet, runs: usize) -> Result<Samples, AnyError> {
    let mut samples = Samples::default();
    for _ in 0..runs {
        timed(&mut samples, || {
            let (_, lease) = ledger.lease_pair(owner, window, &InUse::none())?;
            ledger.release(&lease.key, owner)?;
            Ok(())
        })?;
    }
    Ok(samples)
}

fn uids(ledger: &Ledger, owner: &Owner, runs: usize) -> Result<Samples, AnyError> {
    let mut samples = Samples::default();
    for _ in 0..runs {
        timed(&mut samples, || {
            let (_, lease) = ledger.lease_uid(owner, DEFAULT_UIDS)?;
            ledger.release(&lease.key, owner)?;
            Ok(())
        })?;
    }
    Ok(samples)
}

/// Random pairs until one is not in the set: libvirt's `virSecuritySELinuxMCSFind`, go-selinux's `uniqMcs`.
fn in_memory(held: usize, runs: usize) -> Samples {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % 1024) as u16
    };
    let mut taken = HashSet::new();
    let mut take = |taken: &mut HashSet<CategoryPair>| {
        loop {
            let Ok(pair) = CategoryPair::try_from((next(), next())) else { continue };
            if taken.insert(pair) {
                return pair;
            }
        }
    };
    for _ in 0..held {
        take(&mut taken);
    }
    let mut samples = Samples::default();
    for _ in 0..runs {
        let begin = Instant::now();
        let pair = take(&mut taken);
        taken.remove(&pair);
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    samples
}

/// What is in use by others: each source alone, with so many guests, containers and images.
fn survey(dir: &Path, runs: usize, csv: &mut String) -> Result<(), AnyError> {
    let (libvirt, storage, images) = (dir.join("libvirt"), dir.join("storage"), dir.join("images"));
    let driver = storage.join("overlay-containers");
    [&libvirt, &driver, &images].into_iter().try_for_each(std::fs::create_dir_all)?;
    let mut containers = Vec::new();
    for n in 0..GUESTS {
        let label = |type_: &str| format!("system_u:system_r:{type_}:s0:c{n},c{}", n + 100);
        let xml = format!(
            "<domstatus><domain><name>g{n}</name>{}<seclabel type='dynamic' model='selinux'><label>{}</label></seclabel></domain></domstatus>",
            "<disk type='file'><source file='/x'/></disk>".repeat(400),
            label("svirt_t"),
        );
        std::fs::write(libvirt.join(format!("g{n}.xml")), xml)?;
        let flags =
            serde_json::json!({ "MountLabel": label("container_file_t"), "ProcessLabel": label("container_t") });
        containers.push(serde_json::json!({ "id": format!("{n:064}"), "names": [format!("c{n}")], "flags": flags }));
    }
    std::fs::write(driver.join("containers.json"), serde_json::to_vec(&containers)?)?;
    (0..IMAGES).try_for_each(|n| std::fs::write(images.join(format!("{n}.img")), b""))?;
    let none = Sources::none();
    let rows = [
        ("every thread of this host's processes", Sources { processes: true, ..none.clone() }),
        ("libvirt: 100 guests, 18 KB of XML each", Sources { libvirt: vec![libvirt], ..none.clone() }),
        ("containers-storage: 100 containers", Sources { containers: vec![storage], ..none.clone() }),
        ("1,000 images in a directory", Sources { images: vec![(images, 0)], ..none }),
        ("libvirt and containers-storage, not installed", Sources { processes: false, ..Sources::host() }),
    ];
    let mut table = Table::new(format!("What others have in use, us: median (least..most) of {runs}"), &["us"], 0);
    for (name, sources) in rows {
        let mut samples = Samples::default();
        for _ in 0..runs {
            timed(&mut samples, || {
                std::hint::black_box(InUse::survey(&sources));
                Ok(())
            })?;
        }
        table.row(name, vec![Some(samples)]);
    }
    table.show(csv);
    Ok(())
}
