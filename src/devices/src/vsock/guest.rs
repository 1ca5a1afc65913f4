//! Packets from the guest.

use super::conn::{Connection, End, Phase, due};
use super::header::{self, Header};
use super::table::Slot;
use super::{REPORTS_MAX, RESETS_MAX, Vsock};
use crate::cursor::ChainReader;
use crate::device::{Queues, Served};
use crate::memory::GuestMem;
use crate::queue::{Chain, Fault};
use crate::traits::{Progress, ReportVerdict};

/// The runner's own port: agent reports.
pub const REPORT_PORT: u32 = 1;
/// Packets per turn of the io thread.
const TURN: usize = 64;

impl Vsock {
    /// Takes packets from the transmit queue while there is room for the resets that they may cause.
    pub(super) fn transmit(&mut self, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        let room = RESETS_MAX - self.resets.len();
        self.stalled = room == 0;
        if self.stalled {
            return Ok(Progress::Idle);
        }
        let mut chain = std::mem::take(&mut self.chain);
        let progress = io.serve(super::TX, &mut chain, room.min(TURN) as u32, |chain, mem| {
            self.packet(chain, mem)?;
            Ok(Served { written: 0, cost: 1 })
        });
        self.chain = chain;
        self.stalled = self.resets.len() == RESETS_MAX;
        let progress = progress?;
        Ok(if self.stalled { Progress::Idle } else { progress })
    }

    fn packet(&mut self, chain: &Chain, mem: &GuestMem) -> Result<(), Fault> {
        let mut reader = ChainReader::new(mem, chain.readable());
        let mut raw = [0; header::LEN];
        reader.read_exact(&mut raw)?;
        let h = Header::parse(&raw);
        // Another guest's name, or another host's: nothing of ours to answer for.
        if h.src_cid != self.guest_cid || h.dst_cid != header::HOST_CID {
            return Ok(());
        }
        let known = if h.kind == header::TYPE_STREAM { self.table.find((h.dst_port, h.src_port)) } else { None };
        match (known, h.op) {
            (Some(at), _) => self.on_connection(at, &h, &mut reader)?,
            (None, header::OP_RST) => {}
            (None, header::OP_REQUEST) if h.kind == header::TYPE_STREAM => self.guest_connects(&h),
            (None, _) => self.refuse(&h),
        }
        Ok(())
    }

    /// Owes a reset to whoever sent `h`. There is room: see [`Self::transmit`].
    fn refuse(&mut self, h: &Header) {
        self.resets.push_back(Header {
            src_cid: h.dst_cid,
            dst_cid: h.src_cid,
            src_port: h.dst_port,
            dst_port: h.src_port,
            kind: h.kind,
            op: header::OP_RST,
            ..Default::default()
        });
    }

    fn guest_connects(&mut self, h: &Header) {
        let key = (h.dst_port, h.src_port);
        let (at, end) = if h.dst_port == REPORT_PORT {
            let (Some(at), true) = (self.table.free_slot(), self.reports_open < REPORTS_MAX) else {
                return self.refuse(h);
            };
            self.reports_open += 1;
            self.report_id = self.report_id.wrapping_add(1);
            self.reports.opened(self.report_id);
            (at, End::Report(self.report_id))
        } else {
            let Some(at) = self.table.find_parked(h.dst_port) else { return self.refuse(h) };
            // The slot and its token stay; the stream in it becomes the connection's.
            let Slot::Parked(mut stream, _) = std::mem::replace(self.table.slot(at), Slot::Free) else {
                return self.refuse(h);
            };
            if !super::say(&mut *stream, &format!("ACCEPT {}\n", h.src_port)) {
                self.table.remove(at);
                return self.refuse(h);
            }
            (at, End::Stream(stream))
        };
        let mut conn = Connection::new(key, end, Phase::Open, due::RESPONSE, &[]);
        // Nothing was sent yet, so any count but zero is a lie; then the first data packet would be refused.
        let honest = conn.credit.peer_says(h.buf_alloc, h.fwd_cnt).is_ok();
        *self.table.slot(at) = Slot::Conn(Box::new(conn));
        if honest { self.table.wake(at) } else { self.kill(at) }
    }

    fn on_connection(&mut self, at: usize, h: &Header, reader: &mut ChainReader<'_>) -> Result<(), Fault> {
        let Some(conn) = self.table.conn(at) else { return Ok(()) };
        if h.op == header::OP_RST {
            self.forget(at);
            return Ok(());
        }
        if conn.phase == Phase::Closing {
            return Ok(());
        }
        if conn.credit.peer_says(h.buf_alloc, h.fwd_cnt).is_err() {
            self.kill(at);
            return Ok(());
        }
        conn.credit_came();
        match (h.op, conn.phase) {
            (header::OP_RESPONSE, Phase::Connecting { asked: true }) => self.guest_accepts(at),
            (header::OP_RW, Phase::Open) if conn.guest_may_send() => return self.data(at, h.len, reader),
            (header::OP_SHUTDOWN, Phase::Open) => {
                conn.guest_shutdown(h.flags);
                if let End::Report(_) = conn.end {
                    // Nothing ever flows back on a report connection: one direction done is all done.
                    self.kill(at);
                } else {
                    conn.flush();
                }
            }
            (header::OP_CREDIT_UPDATE, _) => {}
            (header::OP_CREDIT_REQUEST, _) => conn.due |= due::CREDIT_UPDATE,
            _ => self.kill(at),
        }
        self.wake_if_wanted(at);
        Ok(())
    }

    fn guest_accepts(&mut self, at: usize) {
        let Some(conn) = self.table.conn(at) else { return };
        conn.phase = Phase::Open;
        let text = format!("OK {}\n", conn.key.0);
        let told = match &mut conn.end {
            End::Stream(stream) => super::say(&mut **stream, &text),
            _ => false,
        };
        if !told {
            self.kill(at);
        }
    }

    fn data(&mut self, at: usize, len: u32, reader: &mut ChainReader<'_>) -> Result<(), Fault> {
        let Self { table, scratch, reports, .. } = self;
        let Some(conn) = table.conn(at) else { return Ok(()) };
        // The window is as large as the scratch buffer, so an accepted length fits.
        if conn.credit.receive(len).is_err() {
            self.kill(at);
            return Ok(());
        }
        let bytes = &mut scratch[..len as usize];
        reader.read_exact(bytes)?;
        match conn.end {
            End::Report(id) => {
                conn.credit.forwarded(len);
                if reports.data(id, bytes) == ReportVerdict::Close {
                    self.kill(at);
                    return Ok(());
                }
            }
            _ => conn.take(bytes),
        }
        conn.flush();
        self.wake_if_wanted(at);
        Ok(())
    }

    pub(super) fn wake_if_wanted(&mut self, at: usize) {
        if self.table.conn(at).is_some_and(|conn| conn.wants_buffer()) {
            self.table.wake(at);
        }
    }

    /// Ends a connection from our side: the host's end closes now, the guest is owed a reset.
    pub(super) fn kill(&mut self, at: usize) {
        let Some(conn) = self.table.conn(at) else { return };
        if let (End::Stream(stream), Phase::Connecting { .. }) = (&mut conn.end, conn.phase) {
            super::say(&mut **stream, "ERR no connection\n");
        }
        let asked = conn.phase != Phase::Connecting { asked: false };
        let report = conn.close();
        conn.due = due::RST;
        self.report_closed(report);
        if asked {
            self.table.wake(at);
        } else {
            // The guest never heard of it.
            self.table.remove(at);
        }
    }

    /// The guest ended a connection, or it is over.
    pub(super) fn forget(&mut self, at: usize) {
        if let Slot::Conn(mut conn) = self.table.remove(at) {
            if let (End::Stream(stream), Phase::Connecting { .. }) = (&mut conn.end, conn.phase) {
                super::say(&mut **stream, "ERR refused by the guest\n");
            }
            let report = conn.close();
            self.report_closed(report);
        }
    }

    fn report_closed(&mut self, report: Option<u32>) {
        if let Some(id) = report {
            self.reports_open -= 1;
            self.reports.closed(id);
        }
    }
}
