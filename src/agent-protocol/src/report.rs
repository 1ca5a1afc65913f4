//! Boot reports: fixed-size records that the agent sends to host port [`crate::REPORT_PORT`] on one connection.
//!
//! Trust: decoded by the runner from guest bytes; no allocation beyond the bounded text, whose bytes outside printable
//! ASCII become `?` (it ends up on terminals and in logs). [`ReportSequence`] refuses what comes out of order.
//!
//! Layout, little-endian: magic `CMR` + version (4), kind (1), detail (1), text length (1), zero (1), code (4),
//! guest uptime in ms (4), text (112).
use crate::ExitStatus;

/// Bytes of every report on the wire.
pub const REPORT_LEN: usize = 128;
const TEXT_AT: usize = 16;
const MAX_TEXT: usize = REPORT_LEN - TEXT_AT;
const MAGIC: [u8; 4] = *b"CMR\x01";

/// Where bringing the guest up failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    Mounts = 1,
    Config = 2,
    Modules = 3,
    Devices = 4,
    RootFs = 5,
    Disks = 6,
    Listen = 7,
    /// No client attached within the time it was given.
    Attach = 8,
    /// The workload could not be started; `code` is 126, 127 or 125.
    Workload = 9,
    Agent = 10,
}

impl Stage {
    const ALL: [Stage; 10] = [
        Stage::Mounts,
        Stage::Config,
        Stage::Modules,
        Stage::Devices,
        Stage::RootFs,
        Stage::Disks,
        Stage::Listen,
        Stage::Attach,
        Stage::Workload,
        Stage::Agent,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Mounts => "mounts",
            Stage::Config => "config",
            Stage::Modules => "modules",
            Stage::Devices => "devices",
            Stage::RootFs => "rootfs",
            Stage::Disks => "disks",
            Stage::Listen => "listen",
            Stage::Attach => "attach",
            Stage::Workload => "workload",
            Stage::Agent => "agent",
        }
    }
}

/// Why the workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EndCause {
    Itself = 0,
    /// A client asked for it.
    Stopped = 1,
    /// Its time was over.
    Timeout = 2,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The root file system is in place and the agent listens.
    Ready,
    Started {
        pid: u32,
    },
    Exited {
        status: ExitStatus,
        cause: EndCause,
    },
    Failed {
        stage: Stage,
        /// An errno, or the exit status of [`Stage::Workload`]; 0 for neither.
        code: i32,
        text: String,
    },
}

/// A report and the guest's uptime (ms) when it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamped {
    pub report: Report,
    pub uptime_ms: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    #[error("a report without the magic of this version")]
    Magic,
    #[error("a report of unknown form")]
    Form,
    #[error("a report out of order")]
    Order,
}

impl Report {
    #[must_use]
    pub fn encode(&self, uptime_ms: u32) -> [u8; REPORT_LEN] {
        let (kind, detail, code, text) = match self {
            Report::Ready => (1, 0, 0, ""),
            Report::Started { pid } => (2, 0, i32::try_from(*pid).unwrap_or(i32::MAX), ""),
            Report::Exited { status: ExitStatus::Code(code), cause } => (3, *cause as u8, i32::from(*code), ""),
            Report::Exited { status: ExitStatus::Signal(signal), cause } => (4, *cause as u8, i32::from(*signal), ""),
            Report::Failed { stage, code, text } => (5, *stage as u8, *code, text.as_str()),
        };
        let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
        let mut wire = [0; REPORT_LEN];
        wire[..4].copy_from_slice(&MAGIC);
        wire[4] = kind;
        wire[5] = detail;
        // At most MAX_TEXT, which fits.
        wire[6] = text.len() as u8;
        wire[8..12].copy_from_slice(&code.to_le_bytes());
        wire[12..16].copy_from_slice(&uptime_ms.to_le_bytes());
        wire[TEXT_AT..TEXT_AT + text.len()].copy_from_slice(text);
        wire
    }

    pub fn decode(wire: &[u8; REPORT_LEN]) -> Result<Stamped, ReportError> {
        if wire[..4] != MAGIC {
            return Err(ReportError::Magic);
        }
        let (kind, detail, text_len) = (wire[4], wire[5], usize::from(wire[6]));
        let code = i32::from_le_bytes([wire[8], wire[9], wire[10], wire[11]]);
        let uptime_ms = u32::from_le_bytes([wire[12], wire[13], wire[14], wire[15]]);
        let text = wire[TEXT_AT..].get(..text_len).ok_or(ReportError::Form)?;
        if wire[7] != 0 || (kind != 5 && text_len != 0) || (kind < 3 && detail != 0) {
            return Err(ReportError::Form);
        }
        let cause = match detail {
            0 => Some(EndCause::Itself),
            1 => Some(EndCause::Stopped),
            2 => Some(EndCause::Timeout),
            _ => None,
        };
        let byte = u8::try_from(code).map_err(|_| ReportError::Form);
        let report = match kind {
            1 if code == 0 => Report::Ready,
            2 => Report::Started { pid: u32::try_from(code).map_err(|_| ReportError::Form)? },
            3 => Report::Exited { status: ExitStatus::Code(byte?), cause: cause.ok_or(ReportError::Form)? },
            4 => Report::Exited { status: ExitStatus::Signal(byte?), cause: cause.ok_or(ReportError::Form)? },
            5 => Report::Failed {
                stage: Stage::ALL.into_iter().find(|s| *s as u8 == detail).ok_or(ReportError::Form)?,
                code,
                text: text.iter().map(|&b| if (b' '..=b'~').contains(&b) { b as char } else { '?' }).collect(),
            },
            _ => return Err(ReportError::Form),
        };
        Ok(Stamped { report, uptime_ms })
    }
}

/// The order of reports of one VM: Ready, Started, Exited, each once; Failed instead of any of them, and then no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReportSequence {
    #[default]
    Booting,
    Ready,
    Running,
    Ended,
}

impl ReportSequence {
    pub fn accept(&mut self, report: &Report) -> Result<(), ReportError> {
        *self = match (*self, report) {
            (Self::Booting, Report::Ready) => Self::Ready,
            (Self::Ready, Report::Started { .. }) => Self::Running,
            (Self::Running, Report::Exited { .. }) => Self::Ended,
            (Self::Booting | Self::Ready | Self::Running, Report::Failed { .. }) => Self::Ended,
            _ => return Err(ReportError::Order),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reports_round_trip() {
        let all = [
            Report::Ready,
            Report::Started { pid: 42 },
            Report::Exited { status: ExitStatus::Code(255), cause: EndCause::Itself },
            Report::Exited { status: ExitStatus::Signal(9), cause: EndCause::Timeout },
            Report::Failed { stage: Stage::Devices, code: 19, text: "no disk 'root'".into() },
        ];
        for report in all {
            let stamped = Report::decode(&report.encode(77)).unwrap();
            assert_eq!(stamped, Stamped { report, uptime_ms: 77 });
        }
    }

    #[test]
    fn text_is_bounded_and_harmless() {
        let text = format!("\x1b]0;x\x07{}", "é".repeat(100));
        let wire = Report::Failed { stage: Stage::Agent, code: 0, text }.encode(0);
        let Report::Failed { text, .. } = Report::decode(&wire).unwrap().report else { panic!() };
        assert_eq!(text.len(), MAX_TEXT);
        assert!(text.bytes().all(|b| (b' '..=b'~').contains(&b)));
    }

    #[test]
    fn order_is_enforced() {
        let exited = Report::Exited { status: ExitStatus::Code(0), cause: EndCause::Itself };
        let mut sequence = ReportSequence::default();
        assert_eq!(sequence.accept(&exited), Err(ReportError::Order));
        for report in [Report::Ready, Report::Started { pid: 1 }, exited.clone()] {
            sequence.accept(&report).unwrap();
            assert_eq!(sequence.accept(&report), Err(ReportError::Order));
        }
        assert_eq!(sequence, ReportSequence::Ended);
    }

    proptest! {
        #[test]
        fn whatever_decodes_is_in_bounds(mut bytes in proptest::array::uniform32(any::<u8>()), magic: bool) {
            if magic {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[7] = 0;
            }
            let mut wire = [0xffu8; REPORT_LEN];
            wire[..32].copy_from_slice(&bytes);
            if let Ok(stamped) = Report::decode(&wire) {
                prop_assert_eq!(Report::decode(&stamped.report.encode(stamped.uptime_ms)), Ok(stamped));
            }
        }
    }
}
