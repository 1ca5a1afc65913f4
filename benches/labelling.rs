//! What labelling costs: 1, 4 and 16 images, each judged, journalled, recorded and labelled, and given back.
//!
//! `casemate-bench-labelling [--runs N] DIR...`: one table for each directory, whose file system is what counts. Needs
//! root. Without SELinux the label is an xattr like others; in the testbed the kernel checks and applies it. Beside it
//! stand setxattr(2) alone, the least that labelling can be, and chcon, what a person would type.
#![forbid(unsafe_code)]

mod table;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use casemate_label::{CategoryPair, Journal, LabelClass, Ledger, Owner, Profile, Relabeler, Transaction, Undoer};
use nix::sys::statfs::statfs;
use table::{Samples, Table};

type AnyError = Box<dyn std::error::Error>;

const COUNTS: [usize; 3] = [1, 4, 16];
const COLUMNS: [&str; 4] = ["label", "give back", "setxattr alone", "chcon"];
/// A type that the files may have before, known to every policy.
const BEFORE: &str = "system_u:object_r:tmp_t:s0";

fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1).peekable();
    let runs = match args.next_if(|arg| arg == "--runs") {
        Some(_) => args.next().ok_or("--runs takes a number")?.parse()?,
        None => 20,
    };
    let selinux = Path::new("/sys/fs/selinux/enforce").exists();
    let mut csv = String::new();
    for dir in args {
        let dir = PathBuf::from(dir);
        let kind = match statfs(&dir)?.filesystem_type() {
            nix::sys::statfs::EXT4_SUPER_MAGIC => "ext4",
            nix::sys::statfs::TMPFS_MAGIC => "tmpfs",
            _ => "another file system",
        };
        let labels = if selinux { "SELinux on" } else { "no SELinux here: an xattr like others" };
        let title = format!("Labelling, ms for all objects, {runs} runs: {kind} ({}), {labels}", dir.display());
        let mut table = Table::new(title, &COLUMNS, 3);
        for count in COUNTS {
            let cells = measured(&dir, count, runs, selinux)?;
            table.row(format!("{count} objects"), cells);
        }
        table.show(&mut csv);
    }
    Ok(())
}

fn measured(dir: &Path, count: usize, runs: usize, selinux: bool) -> Result<Vec<Option<Samples>>, AnyError> {
    let work = dir.join(format!("casemate-bench-{}", std::process::id()));
    fs::create_dir(&work)?;
    let outcome = rounds(&work, count, runs, selinux);
    fs::remove_dir_all(&work)?;
    outcome
}

fn rounds(work: &Path, count: usize, runs: usize, selinux: bool) -> Result<Vec<Option<Samples>>, AnyError> {
    let mut columns = [(); 4].map(|()| Samples::default());
    let paths: Vec<PathBuf> = (0..count).map(|n| work.join(format!("{n}.img"))).collect();
    for path in &paths {
        File::create(path)?.set_len(1 << 20)?;
    }
    let files = paths.iter().map(|p| File::options().read(true).write(true).open(p)).collect::<Result<Vec<_>, _>>()?;
    let relabeler = Relabeler::new(Profile::casemate());
    let ledger = Ledger::open(work)?;
    let pair = CategoryPair::try_from((1, 2))?;
    // the first round warms caches and is not counted
    for round in 0..=runs {
        files.iter().try_for_each(|file| set(file, BEFORE))?;
        let vm = work.join(format!("vm{round}"));
        fs::create_dir(&vm)?;
        let mut journal = Journal::create(File::open(&vm)?.as_fd(), &vm, Owner::of_self("bench")?)?;
        let begin = Instant::now();
        let mut transaction = Transaction::new(&relabeler, &mut journal, pair);
        for (file, path) in files.iter().zip(&paths) {
            transaction.label(file.as_fd(), path, LabelClass::Exclusive)?;
        }
        transaction.commit();
        let labelled = begin.elapsed();
        let begin = Instant::now();
        let reports = Undoer { ledger: &ledger, relabeler: &relabeler }.undo(&mut journal)?;
        let given_back = begin.elapsed();
        if reports.len() != count {
            return Err(format!("{} of {count} labels went back", reports.len()).into());
        }
        let ours = LabelClass::Exclusive.target(relabeler.profile(), pair).to_string();
        let begin = Instant::now();
        files.iter().try_for_each(|file| set(file, &ours))?;
        let alone = begin.elapsed();
        if round == 0 {
            continue;
        }
        for (column, time) in columns.iter_mut().zip([labelled, given_back, alone]) {
            column.push_ms(time);
        }
        if selinux {
            files.iter().try_for_each(|file| set(file, BEFORE))?;
            columns[3].push_ms(chcon(&ours, &paths)?);
        }
    }
    let [label, give_back, alone, chcon] = columns;
    Ok(vec![Some(label), Some(give_back), Some(alone), selinux.then_some(chcon)])
}

fn set(file: &File, label: &str) -> Result<(), AnyError> {
    let flags = casemate_sys::rustix::fs::XattrFlags::empty();
    Ok(casemate_sys::rustix::fs::fsetxattr(file, "security.selinux", label.as_bytes(), flags)?)
}

fn chcon(label: &str, paths: &[PathBuf]) -> Result<Duration, AnyError> {
    let begin = Instant::now();
    let status = Command::new("chcon").arg(label).args(paths).status()?;
    if status.success() { Ok(begin.elapsed()) } else { Err("chcon failed".into()) }
}
