//! `cp`: files between this host and a running guest.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use casemate_client::{copy as stream_copy, unpack};
use casemate_spec::ByteSize;

use crate::args::CpArgs;
use crate::failure::{Failure, OWN, Result};
use crate::output::{Context, say, written};
use crate::verbs::exec::{connect, running};

enum Side<'a> {
    Guest { name: &'a str, path: &'a str },
    Host(&'a str),
}

/// `NAME:PATH` is in a guest. A path of this host that holds a colon is written with a slash before it, as `./a:b`.
fn side(text: &str) -> Result<Side<'_>> {
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') => {
            if !path.starts_with('/') {
                return Err(Failure::new(format!("{text}: the path in the guest is not absolute"))
                    .remedy(format!("write {name}:/PATH (or ./{text} for a file of this host)")));
            }
            Ok(Side::Guest { name, path })
        }
        _ => Ok(Side::Host(text)),
    }
}

pub fn cp(context: &Context, args: &CpArgs) -> Result<()> {
    // Exit statuses 126 and 127 speak of commands, not of files.
    copy(context, args).map_err(|failure| if failure.silent { failure } else { failure.code(OWN) })
}

fn copy(context: &Context, args: &CpArgs) -> Result<()> {
    match (side(&args.source)?, side(&args.destination)?) {
        (Side::Host(from), Side::Guest { name, path }) => into(context, from, name, path),
        (Side::Guest { name, path }, Side::Host(to)) => {
            let most = ByteSize::parse(&args.max_size)
                .map_err(|e| Failure::new(format!("--max-size: {e}")).remedy("write it as 512M or 16G"))?;
            out_of(context, name, path, to, most.bytes())
        }
        (Side::Host(_), Side::Host(_)) => {
            Err(Failure::new("neither of the two is in a guest").remedy("write one as NAME:/PATH"))
        }
        (Side::Guest { .. }, Side::Guest { .. }) => Err(Failure::new("both are in guests")
            .remedy("copy through this host: `casemate cp A:/x - | casemate cp - B:/`")),
    }
}

fn into(context: &Context, from: &str, name: &str, to: &str) -> Result<()> {
    // The source first: a mistyped name is told before anything is asked of the guest.
    let opened =
        if from == "-" { None } else { Some(File::open(from).map_err(|e| Failure::io(format!("opening {from}"), e))?) };
    let dir = running(&context.dirs, name)?;
    let stream = || connect(&context.dirs, &dir);
    let Some(file) = opened else {
        return Ok(stream_copy::archive_in(stream()?, &mut std::io::stdin().lock(), to)?);
    };
    let path = Path::new(from);
    let is_file = file.metadata().map_err(|e| Failure::io(format!("looking at {from}"), e))?.is_file();
    if is_file && !to.ends_with('/') {
        match stream_copy::file_in(stream()?, &file, to) {
            // It is a directory there: the file goes into it, as cp(1) does.
            Err(casemate_client::Error::Agent { message, .. }) if message.contains("is a directory") => {}
            other => return Ok(other?),
        }
        return Ok(stream_copy::tree_in(stream()?, path, &base(path)?, to)?);
    }
    // A tree becomes `to`; with a slash at its end, something in `to`.
    let target = PathBuf::from(to);
    let (below, called) = match (to.ends_with('/'), target.parent(), target.file_name().and_then(OsStr::to_str)) {
        (false, Some(parent), Some(last)) => (parent.to_string_lossy().into_owned(), last.to_owned()),
        _ => (to.to_owned(), base(path)?),
    };
    Ok(stream_copy::tree_in(stream()?, path, &called, &below)?)
}

/// The name that a source has, also for `.` and `dir/..`.
fn base(path: &Path) -> Result<String> {
    let real = match path.file_name() {
        Some(_) => path.to_owned(),
        None => path.canonicalize().map_err(|e| Failure::io(format!("looking at {}", path.display()), e))?,
    };
    let name = real.file_name().and_then(OsStr::to_str).map(str::to_owned);
    name.ok_or_else(|| Failure::new(format!("{} has no name that a guest can take", path.display())))
}

fn out_of(context: &Context, name: &str, from: &str, to: &str, most: u64) -> Result<()> {
    let dir = running(&context.dirs, name)?;
    let mut incoming = stream_copy::Incoming::open(connect(&context.dirs, &dir)?, from, most)?;
    if to == "-" {
        let copied = std::io::copy(&mut incoming, &mut std::io::stdout().lock());
        return match copied {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => written(Err(error)),
            Err(source) => {
                let error = casemate_client::Error::Io { attempt: format!("copying {from}"), source };
                Err(incoming.explain(error).into())
            }
            Ok(_) => Ok(()),
        };
    }
    // As cp(1): into a directory that exists, else under the new name.
    let last = Path::new(from).components().next_back().map(|c| c.as_os_str().to_owned());
    let last = last.filter(|l| l != "/" && l != "..").unwrap_or_else(|| ".".into());
    let target = Path::new(to);
    let (parent, called) = if target.is_dir() {
        (target.to_owned(), if last == "." { OsStr::new(name).to_owned() } else { last.clone() })
    } else {
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let called = target.file_name().ok_or_else(|| Failure::new(format!("{to}: there is no such directory")))?;
        (parent.to_owned(), called.to_owned())
    };
    let root =
        File::open(&parent).map_err(|e| Failure::io(format!("opening the directory {}", parent.display()), e))?;
    let summary = match unpack::unpack(&mut incoming, root.as_fd(), &last, &called) {
        Ok(summary) => summary,
        Err(error) => return Err(incoming.explain(error).into()),
    };
    if context.json() {
        return context.print_json(&summary);
    }
    if summary.left_out > 0 {
        summary.told.iter().for_each(|told| say(&format!("left out {told}")));
        let more = summary.left_out.saturating_sub(summary.told.len() as u64);
        if more > 0 {
            say(&format!("left out {more} more of the guest's archive"));
        }
    }
    Ok(())
}
