//! A progress bar for long work, on a terminal only.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use casemate_image::{Phase, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Context;

/// Work that is over sooner shows nothing.
const PATIENCE: Duration = Duration::from_millis(300);

pub struct Bar {
    wanted: bool,
    begun: Instant,
    bar: Option<(Phase, ProgressBar)>,
}

impl Bar {
    pub fn new(context: &Context) -> Bar {
        Bar { wanted: !context.json() && std::io::stderr().is_terminal(), begun: Instant::now(), bar: None }
    }

    /// Shows how far the work is.
    pub fn show(&mut self, progress: Progress) {
        if !self.wanted || self.begun.elapsed() < PATIENCE {
            return;
        }
        let fresh = self
            .bar
            .as_ref()
            .is_none_or(|(phase, bar)| *phase != progress.phase || bar.length().unwrap_or(0) != progress.total);
        if fresh {
            self.clear();
            self.bar = Some((progress.phase, make(progress)));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_position(progress.done);
        }
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

fn make(progress: Progress) -> ProgressBar {
    let counted = progress.phase == Phase::Modules;
    let template = match (progress.total, counted) {
        (0, _) => "{spinner} {msg} {bytes}",
        (_, true) => "{msg} [{bar:30}] {pos}/{len}",
        (_, false) => "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = match progress.total {
        0 => ProgressBar::new_spinner(),
        total => ProgressBar::new(total),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.with_style(style.progress_chars("=> ")).with_message(match progress.phase {
        Phase::ReadingPackage => "reading the package",
        Phase::ReadingSource => "reading the root file system",
        Phase::Unpacking => "unpacking",
        Phase::Modules => "unpacking modules",
        Phase::Vmlinux => "unpacking the kernel",
        Phase::Image => "building the image",
    })
}
