//! What the guest's agent says on the report port: fixed-size records, decoded, ordered, passed on as claims.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use casemate_agent_protocol::{ExitStatus, REPORT_LEN, Report, ReportSequence};
use casemate_devices::{ReportSink, ReportVerdict};
use casemate_wire::runner::GuestNews;

use crate::mailbox::{Mail, Mailbox};

/// Tells the reports that the guest starts again, with an agent that begins at its first report.
#[derive(Debug, Clone, Default)]
pub struct Again(Arc<AtomicBool>);

impl Again {
    /// The next connection belongs to a new life.
    pub fn announce(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Decodes one connection at a time; whatever is malformed or out of order closes it.
pub struct Reports {
    mailbox: Arc<Mailbox>,
    again: Again,
    sequence: ReportSequence,
    /// The connection that is read, and its unfinished record.
    current: Option<u32>,
    record: [u8; REPORT_LEN],
    filled: usize,
}

impl Reports {
    pub fn new(mailbox: Arc<Mailbox>, again: Again) -> Self {
        Self { mailbox, again, sequence: ReportSequence::default(), current: None, record: [0; REPORT_LEN], filled: 0 }
    }

    fn record(&mut self) -> ReportVerdict {
        self.filled = 0;
        let Ok(stamped) = Report::decode(&self.record) else { return ReportVerdict::Close };
        if self.sequence.accept(&stamped.report).is_err() {
            return ReportVerdict::Close;
        }
        match self.mailbox.post(Mail::News(news(stamped.report))) {
            true => ReportVerdict::Continue,
            false => ReportVerdict::Close,
        }
    }
}

impl ReportSink for Reports {
    fn opened(&mut self, id: u32) {
        if self.again.0.swap(false, Ordering::SeqCst) {
            (self.current, self.sequence) = (None, ReportSequence::default());
        }
        // The agent uses one connection; another one starts a record of its own only when the first is gone.
        if self.current.is_none() {
            (self.current, self.filled) = (Some(id), 0);
        }
    }

    fn data(&mut self, id: u32, mut bytes: &[u8]) -> ReportVerdict {
        if self.current != Some(id) {
            return ReportVerdict::Close;
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(REPORT_LEN - self.filled));
            self.record[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == REPORT_LEN && self.record() == ReportVerdict::Close {
                return ReportVerdict::Close;
            }
        }
        ReportVerdict::Continue
    }

    fn closed(&mut self, id: u32) {
        if self.current == Some(id) {
            self.current = None;
        }
    }
}

/// A report as the warden is told; a signal becomes an exit status as in a shell.
fn news(report: Report) -> GuestNews {
    match report {
        Report::Ready => GuestNews::Ready,
        Report::Started { .. } => GuestNews::Started,
        Report::Exited { status: ExitStatus::Code(status), .. } => GuestNews::Exited { status },
        Report::Exited { status: ExitStatus::Signal(signal), .. } => {
            GuestNews::Exited { status: signal.saturating_add(128) }
        }
        Report::Failed { stage, code, text } => {
            GuestNews::Failed { detail: format!("{} (code {code}): {text}", stage.name()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_agent_protocol::EndCause;

    fn reports() -> (Reports, Arc<Mailbox>) {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        (Reports::new(Arc::clone(&mailbox), Again::default()), mailbox)
    }

    #[test]
    fn records_are_put_together_from_pieces() {
        let (mut reports, mailbox) = reports();
        let exited = Report::Exited { status: ExitStatus::Signal(9), cause: EndCause::Itself };
        let mut wire = Report::Ready.encode(1).to_vec();
        wire.extend(Report::Started { pid: 5 }.encode(2));
        wire.extend(exited.encode(3));
        reports.opened(7);
        assert!(wire.chunks(50).all(|piece| reports.data(7, piece) == ReportVerdict::Continue));
        let expected = [GuestNews::Ready, GuestNews::Started, GuestNews::Exited { status: 137 }].map(Mail::News);
        assert_eq!(mailbox.take(), expected);
    }

    #[test]
    fn a_new_life_begins_at_the_first_report() {
        let (mut reports, mailbox) = reports();
        for _ in 0..2 {
            reports.opened(1);
            assert_eq!(reports.data(1, &Report::Ready.encode(0)), ReportVerdict::Continue);
            reports.again.announce();
        }
        assert_eq!(mailbox.take().len(), 2);
    }

    #[test]
    fn garbage_disorder_and_strangers_are_closed() {
        let (mut reports, mailbox) = reports();
        reports.opened(1);
        assert_eq!(reports.data(2, &[0; 8]), ReportVerdict::Close, "not opened");
        reports.opened(2);
        assert_eq!(reports.data(2, &[0; 8]), ReportVerdict::Close, "a second one beside the first");
        assert_eq!(reports.data(1, &[0xff; REPORT_LEN]), ReportVerdict::Close, "garbage");
        assert_eq!(reports.data(1, &Report::Started { pid: 1 }.encode(0)), ReportVerdict::Close, "before Ready");
        reports.closed(1);
        reports.opened(3);
        assert_eq!(reports.data(3, &Report::Ready.encode(0)), ReportVerdict::Continue);
        assert_eq!(mailbox.take(), [Mail::News(GuestNews::Ready)]);
    }
}
