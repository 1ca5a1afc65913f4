//! Registers by which a guest ends itself. Each is a few bytes without memory of its own worth saving, except the
//! value that port 0xcf9 reads back, which no guest relies on: all are transparent to migration.

use crate::bus::BusDevice;
use crate::traits::Action;

/// The keyboard controller at ports 0x60..0x65, reduced to its reset command.
pub struct I8042;

impl I8042 {
    pub const PORT: u64 = 0x60;
    pub const LEN: u64 = 5;
    const COMMAND: u64 = 4;
    const RESET_CPU: u8 = 0xfe;
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status 0: input buffer empty, so that a kernel that wants to reset does not wait for it.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        match (offset, data) {
            (Self::COMMAND, [Self::RESET_CPU]) => Action::Reset,
            _ => Action::None,
        }
    }
}

/// The reset control register at port 0xcf9.
pub struct ResetPort;

impl ResetPort {
    pub const PORT: u64 = 0xcf9;
    pub const LEN: u64 = 1;
    const RESET_CPU: u8 = 0x04;
}

impl BusDevice for ResetPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Action {
        match data {
            [value] if value & Self::RESET_CPU != 0 => Action::Reset,
            _ => Action::None,
        }
    }
}

/// pvpanic at its ISA port (QEMU docs/specs/pvpanic.rst), described to the guest as ACPI device QEMU0001.
pub struct PvPanic;

impl PvPanic {
    pub const PORT: u64 = 0x505;
    pub const LEN: u64 = 1;
    const PANICKED: u8 = 1;
    const CRASH_LOADED: u8 = 2;
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(Self::PANICKED | Self::CRASH_LOADED);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Action {
        match data {
            [value] if value & Self::PANICKED != 0 => Action::GuestPanicked,
            [value] if value & Self::CRASH_LOADED != 0 => Action::GuestCrashLoaded,
            _ => Action::None,
        }
    }
}

/// Sleep control, sleep status and reset register of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7 and 4.8.3.6).
pub struct AcpiPower {
    s5: u8,
}

impl AcpiPower {
    pub const LEN: u64 = 3;
    /// FADT SLEEP_CONTROL_REG: one byte at this offset.
    pub const SLEEP_CONTROL: u64 = 0;
    /// FADT SLEEP_STATUS_REG.
    pub const SLEEP_STATUS: u64 = 1;
    /// FADT RESET_REG, with [`Self::RESET_VALUE`].
    pub const RESET: u64 = 2;
    pub const RESET_VALUE: u8 = 0x42;
    const SLEEP_ENABLE: u8 = 1 << 5;

    /// `s5` is the sleep type that the DSDT's `\_S5` names (0 to 7).
    pub fn new(s5: u8) -> Self {
        Self { s5: s5 & 7 }
    }
}

impl BusDevice for AcpiPower {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let [value] = *data else { return Action::None };
        match offset {
            Self::SLEEP_CONTROL if value & Self::SLEEP_ENABLE != 0 && (value >> 2) & 7 == self.s5 => Action::PowerOff,
            Self::RESET if value == Self::RESET_VALUE => Action::Reset,
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_answers_its_own_value_only() {
        assert_eq!(I8042.write(4, &[0xfe]), Action::Reset);
        assert_eq!(I8042.write(0, &[0xfe]), Action::None);
        assert_eq!(I8042.write(4, &[0xfe, 0]), Action::None);
        assert_eq!(ResetPort.write(0, &[0x06]), Action::Reset);
        assert_eq!(ResetPort.write(0, &[0x02]), Action::None);
        assert_eq!(PvPanic.write(0, &[1]), Action::GuestPanicked);
        assert_eq!(PvPanic.write(0, &[2]), Action::GuestCrashLoaded);
        assert_eq!(PvPanic.write(0, &[0xfc]), Action::None);
    }

    #[test]
    fn acpi_powers_off_on_s5_only() {
        let acpi = AcpiPower::new(5);
        assert_eq!(acpi.write(AcpiPower::SLEEP_CONTROL, &[(5 << 2) | (1 << 5)]), Action::PowerOff);
        assert_eq!(acpi.write(AcpiPower::SLEEP_CONTROL, &[5 << 2]), Action::None);
        assert_eq!(acpi.write(AcpiPower::SLEEP_CONTROL, &[(3 << 2) | (1 << 5)]), Action::None);
        assert_eq!(acpi.write(AcpiPower::RESET, &[AcpiPower::RESET_VALUE]), Action::Reset);
        assert_eq!(acpi.write(AcpiPower::RESET, &[0]), Action::None);
        assert_eq!(acpi.write(AcpiPower::SLEEP_STATUS, &[0x80]), Action::None);
    }
}
