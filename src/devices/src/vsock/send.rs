//! Packets to the guest: whoever has something to say takes turns with the guest's receive buffers.

use super::conn::{Connection, End, Phase, due};
use super::header::{self, Header};
use super::{RESETS_MAX, RX, Vsock};
use crate::cursor::{ChainWriter, total};
use crate::device::Queues;
use crate::queue::Fault;
use crate::traits::Progress;

/// Packets per turn of the io thread.
const TURN: u32 = 128;

/// A packet to be put into a receive buffer, its data in the scratch buffer.
struct Packet {
    header: Header,
    data: usize,
    /// After this one nothing is left of the connection.
    last: bool,
}

impl Vsock {
    pub(super) fn pump(&mut self, io: &mut Queues<'_>) -> Result<Progress, Fault> {
        let mem = io.mem();
        io.queue(RX).quiet(mem)?;
        let mut pushed = false;
        let mut progress = Progress::More;
        for _ in 0..TURN {
            match self.send_one(io)? {
                Sent::One => pushed = true,
                Sent::Nothing => {}
                Sent::AllQuiet => {
                    progress = Progress::Idle;
                    break;
                }
                Sent::NoBuffer => {
                    if !io.queue(RX).listen(mem)? {
                        progress = Progress::Idle;
                        break;
                    }
                }
            }
        }
        if pushed {
            io.signal(RX)?;
        }
        if self.stalled && self.resets.len() < RESETS_MAX {
            progress = Progress::More;
        }
        Ok(progress)
    }

    fn send_one(&mut self, io: &mut Queues<'_>) -> Result<Sent, Fault> {
        if let Some(&header) = self.resets.front() {
            if !io.pop(RX, &mut self.chain)? {
                return Ok(Sent::NoBuffer);
            }
            self.put(io, &Packet { header, data: 0, last: false })?;
            self.resets.pop_front();
            return Ok(Sent::One);
        }
        let Some(at) = self.table.next_ready() else { return Ok(Sent::AllQuiet) };
        let Some(conn) = self.table.conn(at).filter(|conn| conn.wants_buffer()) else { return Ok(Sent::Nothing) };
        if !io.pop(RX, &mut self.chain)? {
            self.table.not_served(at);
            return Ok(Sent::NoBuffer);
        }
        let room = usize::try_from(total(self.chain.writable())).unwrap_or(usize::MAX);
        // Linux posts 4 KiB; a buffer without room for data would be offered to the same connection for ever.
        let room = room.checked_sub(header::LEN).filter(|&room| room > 0).ok_or(Fault::ChainTooShort)?;
        let room = room.min(self.scratch.len());
        let Some(packet) = next_packet(conn, self.guest_cid, &mut self.scratch[..room]) else {
            io.queue(RX).unpop();
            return Ok(Sent::Nothing);
        };
        self.put(io, &packet)?;
        if packet.last {
            self.forget(at);
        } else {
            self.wake_if_wanted(at);
        }
        Ok(Sent::One)
    }

    fn put(&mut self, io: &mut Queues<'_>, packet: &Packet) -> Result<(), Fault> {
        let mut writer = ChainWriter::new(io.mem(), self.chain.writable());
        writer.write_all(&packet.header.to_bytes())?;
        writer.write_all(&self.scratch[..packet.data])?;
        let written = writer.written();
        io.push(RX, &self.chain, written)
    }
}

enum Sent {
    One,
    /// A connection was looked at that had nothing after all.
    Nothing,
    NoBuffer,
    AllQuiet,
}

fn next_packet(conn: &mut Connection, guest_cid: u64, scratch: &mut [u8]) -> Option<Packet> {
    let mut data = 0;
    let op = if conn.due & due::RST != 0 {
        header::OP_RST
    } else if conn.due & due::REQUEST != 0 {
        conn.due &= !due::REQUEST;
        conn.phase = Phase::Connecting { asked: true };
        header::OP_REQUEST
    } else if conn.due & due::RESPONSE != 0 {
        conn.due &= !due::RESPONSE;
        header::OP_RESPONSE
    } else {
        data = conn.read_input(scratch);
        if data > 0 { header::OP_RW } else { next_control(conn)? }
    };
    let flags = if op == header::OP_SHUTDOWN { conn.told } else { 0 };
    // Every packet carries our credit, so none needs to follow.
    let (buf_alloc, fwd_cnt) = conn.credit.announce();
    conn.due &= !due::CREDIT_UPDATE;
    let header = Header {
        src_cid: header::HOST_CID,
        dst_cid: guest_cid,
        src_port: conn.key.0,
        dst_port: conn.key.1,
        len: data as u32,
        kind: header::TYPE_STREAM,
        op,
        flags,
        buf_alloc,
        fwd_cnt,
    };
    Some(Packet { header, data, last: op == header::OP_RST })
}

/// What is owed besides data; looked at after reading, which may have met the end of the stream.
fn next_control(conn: &mut Connection) -> Option<u16> {
    let owed = [
        (due::RST, header::OP_RST),
        (due::SHUTDOWN, header::OP_SHUTDOWN),
        (due::CREDIT_REQUEST, header::OP_CREDIT_REQUEST),
        (due::CREDIT_UPDATE, header::OP_CREDIT_UPDATE),
    ];
    let (bit, op) = owed.into_iter().find(|(bit, _)| conn.due & bit != 0)?;
    conn.due &= !bit;
    debug_assert!(op == header::OP_RST || !matches!(conn.end, End::Gone));
    Some(op)
}
