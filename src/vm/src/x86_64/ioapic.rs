//! The I/O APIC as a pure state machine: registers in, MSI messages out (Intel 82093AA).
//!
//! Trust: offsets and values come from the guest. Any value is accepted and masked to the bits that exist; the result
//! of [`Ioapic::route`] is always a message that KVM accepts.
//! Devices signal edges through irqfds that KVM turns into the routed message, so no edge passes through this file.
//! Level-triggered entries keep their remote IRR only for the guest's view; no device of ours uses them.

use serde::{Deserialize, Serialize};

use super::layout::{IOAPIC_PINS, LOCAL_APIC};

const PINS: usize = IOAPIC_PINS as usize;
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;
/// Version 0x11 (no EOI register) and the highest pin.
const VERSION: u32 = 0x11 | ((IOAPIC_PINS - 1) << 16);
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
/// Bits a guest may write: all but delivery status and remote IRR, nothing reserved.
const WRITABLE: u64 = 0xff00_0000_0001_ffff & !(DELIVERY_STATUS | REMOTE_IRR);

/// An interrupt message, as a PCI device would write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// Address, low half; the high half is zero.
    pub address: u32,
    /// Data.
    pub data: u32,
}

/// Saved registers. Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoapicState {
    /// Layout version of this struct.
    pub version: u32,
    /// I/O register select.
    pub select: u8,
    /// APIC id field.
    pub id: u8,
    /// Redirection table, one entry per pin.
    pub pins: Vec<u64>,
}

impl IoapicState {
    /// The layout this program writes and reads.
    pub const VERSION: u32 = 1;
}

/// The chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ioapic {
    select: u8,
    id: u8,
    pins: [u64; PINS],
}

impl Default for Ioapic {
    fn default() -> Self {
        Self { select: 0, id: 0, pins: [MASKED; PINS] }
    }
}

impl Ioapic {
    /// A guest read. Registers are 32 bits wide; other offsets read zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => u32::from(self.select),
            WINDOW => self.register(),
            _ => 0,
        };
        data.fill(0);
        let n = data.len().min(4);
        data[..n].copy_from_slice(&value.to_le_bytes()[..n]);
    }

    /// A guest write. `true` when a route changed and must be told to KVM.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let mut bytes = [0u8; 4];
        let n = data.len().min(4);
        bytes[..n].copy_from_slice(&data[..n]);
        let value = u32::from_le_bytes(bytes);
        match offset {
            SELECT => {
                self.select = value as u8;
                false
            }
            WINDOW => self.set_register(value),
            _ => false,
        }
    }

    /// The message that an edge on `pin` sends now; `None` when masked or not deliverable.
    pub fn route(&self, pin: usize) -> Option<Msi> {
        let entry = *self.pins.get(pin)?;
        let vector = entry & 0xff;
        let delivery = (entry >> 8) & 7;
        // Fixed and lowest priority only: a guest that wants NMI, SMI or INIT sends it through its local APIC.
        if entry & MASKED != 0 || delivery > 1 || vector < 0x10 {
            return None;
        }
        let destination = (entry >> 56) as u32;
        let logical = ((entry >> 11) & 1) as u32;
        let level = u32::from(entry & LEVEL != 0);
        Some(Msi {
            address: LOCAL_APIC as u32 | (destination << 12) | (logical << 2),
            data: (level << 15) | ((delivery as u32) << 8) | vector as u32,
        })
    }

    /// End of interrupt, as KVM reports it for level-triggered entries.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for entry in &mut self.pins {
            if *entry & LEVEL != 0 && (*entry & 0xff) as u8 == vector {
                *entry &= !REMOTE_IRR;
            }
        }
    }

    /// The registers, to be saved.
    pub fn save(&self) -> IoapicState {
        let Self { select, id, pins } = self.clone();
        IoapicState { version: IoapicState::VERSION, select, id, pins: pins.to_vec() }
    }

    /// Takes saved registers; every bit passes the same mask as a guest write.
    ///
    /// # Errors
    /// Another version or another number of pins.
    pub fn restore(state: &IoapicState) -> crate::Result<Self> {
        let pins: Option<[u64; PINS]> = state.pins.as_slice().try_into().ok();
        match (state.version, pins) {
            (IoapicState::VERSION, Some(pins)) => {
                Ok(Self { select: state.select, id: state.id & 0xf, pins: pins.map(|e| e & (WRITABLE | REMOTE_IRR)) })
            }
            (found, _) => Err(crate::Error::StateVersion { what: "I/O APIC", found, known: IoapicState::VERSION }),
        }
    }

    fn register(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => VERSION,
            select => match self.table_index(select) {
                Some((pin, true)) => (self.pins[pin] >> 32) as u32,
                Some((pin, false)) => self.pins[pin] as u32,
                None => 0,
            },
        }
    }

    fn set_register(&mut self, value: u32) -> bool {
        if self.select == REG_ID {
            self.id = ((value >> 24) & 0xf) as u8;
            return false;
        }
        let Some((pin, high)) = self.table_index(self.select) else { return false };
        let before = self.route(pin);
        let old = self.pins[pin];
        let wanted = match high {
            true => (old & 0xffff_ffff) | (u64::from(value) << 32),
            false => (old & !0xffff_ffff) | u64::from(value),
        };
        self.pins[pin] = (wanted & WRITABLE) | (old & REMOTE_IRR);
        if self.pins[pin] & LEVEL == 0 {
            self.pins[pin] &= !REMOTE_IRR;
        }
        self.route(pin) != before
    }

    /// Register number to pin and half (`true` = upper 32 bits).
    fn table_index(&self, select: u8) -> Option<(usize, bool)> {
        let index = select.checked_sub(REG_TABLE)?;
        let pin = usize::from(index / 2);
        (pin < PINS).then_some((pin, index % 2 == 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(chip: &mut Ioapic, register: u8, value: u32) -> bool {
        assert!(!chip.write(SELECT, &[register]));
        chip.write(WINDOW, &value.to_le_bytes())
    }

    fn read(chip: &mut Ioapic, register: u8) -> u32 {
        assert!(!chip.write(SELECT, &u32::from(register).to_le_bytes()));
        let mut data = [0xffu8; 4];
        chip.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn starts_masked_and_says_its_size() {
        let mut chip = Ioapic::default();
        assert_eq!(read(&mut chip, REG_VERSION), 0x0017_0011);
        assert!((0..PINS).all(|pin| chip.route(pin).is_none()));
        assert_eq!(read(&mut chip, REG_TABLE + 8), MASKED as u32);
    }

    #[test]
    fn unmasking_an_entry_routes_it() {
        let mut chip = Ioapic::default();
        assert!(!write(&mut chip, REG_TABLE + 2 * 5 + 1, 2 << 24), "still masked: nothing to tell KVM");
        assert!(write(&mut chip, REG_TABLE + 2 * 5, 0x41));
        assert_eq!(chip.route(5), Some(Msi { address: 0xfee0_2000, data: 0x41 }));
        assert!(!write(&mut chip, REG_TABLE + 2 * 5, 0x41), "unchanged");
        assert!(write(&mut chip, REG_TABLE + 2 * 5, 0x41 | MASKED as u32));
        assert_eq!(chip.route(5), None);
    }

    #[test]
    fn logical_lowest_priority_level() {
        let mut chip = Ioapic::default();
        let _ = write(&mut chip, REG_TABLE + 1, 0xff00_0000);
        assert!(write(&mut chip, REG_TABLE, 0x8930));
        assert_eq!(chip.route(0), Some(Msi { address: 0xfeef_f004, data: 0x8130 }));
    }

    #[test]
    fn undeliverable_modes_and_vectors_have_no_route() {
        let mut chip = Ioapic::default();
        for low in [0x0f, 0x230, 0x430, 0x530, 0x730] {
            let _ = write(&mut chip, REG_TABLE, low);
            assert_eq!(chip.route(0), None, "{low:#x}");
        }
    }

    #[test]
    fn read_only_and_reserved_bits_stay() {
        let mut chip = Ioapic::default();
        let _ = write(&mut chip, REG_TABLE, u32::MAX);
        let _ = write(&mut chip, REG_TABLE + 1, u32::MAX);
        assert_eq!(read(&mut chip, REG_TABLE), 0x0001_afff);
        assert_eq!(read(&mut chip, REG_TABLE + 1), 0xff00_0000);
    }

    #[test]
    fn wild_accesses_are_harmless() {
        let mut chip = Ioapic::default();
        for register in 0..=255u8 {
            let _ = write(&mut chip, register, u32::MAX);
            let _ = read(&mut chip, register);
        }
        for offset in [1, 4, 0x11, 0x20, 0x40, 0xfff] {
            assert!(!chip.write(offset, &[0xff; 8]));
            let mut data = [0xaa; 8];
            chip.read(offset, &mut data);
            assert_eq!(data, [0; 8]);
        }
        chip.read(WINDOW, &mut []);
        assert!(!chip.write(WINDOW, &[]));
        assert_eq!(chip.route(PINS), None);
    }

    #[test]
    fn state_round_trip_and_refusals() {
        let mut chip = Ioapic::default();
        let _ = write(&mut chip, REG_TABLE + 8, 0x33);
        assert_eq!(Ioapic::restore(&chip.save()).unwrap(), chip);
        let mut state = chip.save();
        state.version = 2;
        assert!(Ioapic::restore(&state).is_err());
        let mut state = chip.save();
        state.pins.pop();
        assert!(Ioapic::restore(&state).is_err());
        let mut state = chip.save();
        state.pins[0] = u64::MAX;
        assert_eq!(Ioapic::restore(&state).unwrap().pins[0] & !(WRITABLE | REMOTE_IRR), 0);
    }

    #[test]
    fn end_of_interrupt_clears_remote_irr_of_level_entries_only() {
        let mut state = Ioapic::default().save();
        state.pins[1] = LEVEL | REMOTE_IRR | 0x40;
        state.pins[2] = LEVEL | REMOTE_IRR | 0x41;
        let mut chip = Ioapic::restore(&state).unwrap();
        chip.end_of_interrupt(0x40);
        assert_eq!(chip.pins[1], LEVEL | 0x40);
        assert_eq!(chip.pins[2], LEVEL | REMOTE_IRR | 0x41);
    }
}
