//! Flow control of one connection, both ways (virtio 1.2, 5.10.6.3). Pure arithmetic on counters that wrap.
//!
//! We never send more than the guest allows and never buffer more than [`WINDOW`] bytes for it; a guest that sends
//! past the window, or claims to have consumed what was never sent, loses the connection.

/// What we announce as buf_alloc, and the most that one connection buffers.
pub const WINDOW: u32 = 64 * 1024;

/// The guest broke the flow control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lie;

#[derive(Clone, Copy, Debug, Default)]
pub struct Credit {
    /// To the guest: bytes sent, what it says it has consumed, and its buffer.
    sent: u32,
    peer_consumed: u32,
    peer_alloc: u32,
    /// From the guest: bytes received, bytes passed on, and what it was last told of that.
    received: u32,
    forwarded: u32,
    announced: u32,
}

impl Credit {
    /// Takes the credit fields that every packet carries.
    pub fn peer_says(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), Lie> {
        let outstanding = self.sent.wrapping_sub(self.peer_consumed);
        let advance = fwd_cnt.wrapping_sub(self.peer_consumed);
        if advance <= outstanding {
            self.peer_consumed = fwd_cnt;
        } else if advance < 1 << 31 {
            return Err(Lie);
        }
        // Else the count is an older one: two threads of a guest may queue their packets in either order.
        self.peer_alloc = buf_alloc;
        Ok(())
    }

    /// How much may be sent now.
    pub fn available(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_consumed))
    }

    pub fn sent(&mut self, n: u32) {
        self.sent = self.sent.wrapping_add(n);
    }

    /// The guest sent `n` bytes.
    pub fn receive(&mut self, n: u32) -> Result<(), Lie> {
        let held = self.received.wrapping_sub(self.forwarded);
        if n > WINDOW - held {
            return Err(Lie);
        }
        self.received = self.received.wrapping_add(n);
        Ok(())
    }

    /// `n` received bytes left our buffer.
    pub fn forwarded(&mut self, n: u32) {
        self.forwarded = self.forwarded.wrapping_add(n);
    }

    /// Whether the guest believes that less than half of the window is free, and that is no longer so.
    pub fn owes_update(&self) -> bool {
        self.forwarded != self.announced && self.received.wrapping_sub(self.announced) > WINDOW / 2
    }

    /// The credit fields of the packet that is about to be sent: (buf_alloc, fwd_cnt).
    pub fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (WINDOW, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn consuming_what_was_never_sent_is_a_lie() {
        let mut c = Credit::default();
        c.peer_says(1000, 0).unwrap();
        c.sent(100);
        assert_eq!(c.available(), 900);
        assert_eq!(c.peer_says(1000, 101), Err(Lie));
        c.peer_says(1000, 100).unwrap();
        assert_eq!(c.available(), 1000);
        // An older count is no lie and gives nothing.
        c.peer_says(1000, 50).unwrap();
        assert_eq!(c.available(), 1000);
        // A shrunk buffer never underflows.
        c.sent(500);
        c.peer_says(10, 100).unwrap();
        assert_eq!(c.available(), 0);
    }

    #[test]
    fn sending_past_the_window_is_a_lie() {
        let mut c = Credit::default();
        c.receive(WINDOW).unwrap();
        assert_eq!(c.receive(1), Err(Lie));
        assert!(!c.owes_update());
        c.forwarded(1);
        assert!(c.owes_update());
        c.receive(1).unwrap();
        assert_eq!(c.receive(u32::MAX), Err(Lie));
        assert_eq!(c.announce(), (WINDOW, 1));
        assert!(!c.owes_update());
    }

    proptest! {
        /// Whatever the guest says, what is in flight never exceeds what it last allowed, across wrap-around.
        #[test]
        fn in_flight_stays_within_the_allowance(start: u32, steps in proptest::collection::vec((any::<u32>(), any::<u32>(), 0u32..200_000), 1..60)) {
            let mut c = Credit { sent: start, peer_consumed: start, received: start, forwarded: start, announced: start, ..Default::default() };
            let mut consumed = start;
            for (alloc, fwd, n) in steps {
                let alloc = alloc % 300_000;
                if c.peer_says(alloc, fwd).is_err() {
                    // An honest guest instead.
                    consumed = consumed.wrapping_add(n.min(c.sent.wrapping_sub(c.peer_consumed)));
                    let _ = c.peer_says(alloc, consumed);
                }
                consumed = c.peer_consumed;
                let n = n.min(c.available());
                c.sent(n);
                prop_assert!(n == 0 || c.sent.wrapping_sub(c.peer_consumed) <= c.peer_alloc);
                let _ = c.receive(fwd % 100_000);
                prop_assert!(c.received.wrapping_sub(c.forwarded) <= WINDOW);
                c.forwarded(alloc % (c.received.wrapping_sub(c.forwarded) + 1));
            }
        }
    }
}
