//! `--calls`: the verdict table of each thread's installed seccomp filters, above the report.

use std::fmt::Write;
use std::sync::Arc;

use casemate_audit::report::visible::visible;
use casemate_audit::seccomp::{Verdicts, render};
use casemate_audit::subject::{Known, Process, Subject, Thread};

use crate::args::Format;
use crate::failure::{Failure, Result};
use crate::output::{Context, Tone, paint};

/// Other forms hold the tables already.
pub fn possible(context: &Context, calls: bool) -> Result<()> {
    if !calls || context.format == Format::Text {
        return Ok(());
    }
    let failure = Failure::new("--calls is for text");
    Err(failure.remedy("--format json has every table: subjects, processes, threads, filters"))
}

pub fn print(context: &Context, calls: bool, subjects: &[Subject]) -> Result<()> {
    if calls { context.print(&tables(subjects)) } else { Ok(()) }
}

fn tables(subjects: &[Subject]) -> String {
    let mut out = String::new();
    for subject in subjects {
        for process in &subject.processes {
            match &process.threads {
                Known::Seen(threads) => of_threads(&mut out, &subject.name, process, threads),
                Known::Unseen(why) => {
                    let _ = writeln!(out, "{}: not looked at: {}\n", process.role, visible(why));
                }
            }
        }
    }
    out
}

/// Threads with the same verdicts together.
fn of_threads(out: &mut String, subject: &str, process: &Process, threads: &[Thread]) {
    let mut groups: Vec<(&Known<Arc<Verdicts>>, Vec<String>)> = Vec::new();
    for thread in threads {
        let tid = thread.tid.map_or_else(String::new, |tid| format!(" {tid}"));
        let name = format!("{}{tid}", visible(&thread.name));
        match groups.iter_mut().find(|(filters, _)| **filters == thread.filters) {
            Some((_, names)) => names.push(name),
            None => groups.push((&thread.filters, vec![name])),
        }
    }
    for (filters, names) in groups {
        let head = format!("{} of {}: {}", process.role, visible(subject), names.join(", "));
        let _ = writeln!(out, "{}", paint(&head, Tone::Head));
        match filters {
            Known::Seen(verdicts) => out.push_str(&render(verdicts)),
            Known::Unseen(why) => {
                let _ = writeln!(out, "not read: {}", visible(why));
            }
        }
        out.push('\n');
    }
}
