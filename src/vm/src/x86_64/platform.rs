//! The few ports that end a VM: ACPI sleep and reset registers, the PC's reset ports, pvpanic.

use super::layout::{
    I8042_COMMAND_PORT, PC_RESET_PORT, PVPANIC_PORT, RESET_PORT, RESET_VALUE, S5_TYPE, SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT,
};
use crate::vcpu::{Ending, PanicKind, ResetSource};

const SLP_EN: u8 = 1 << 5;
const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;
const I8042_PULSE_RESET: u8 = 0xfe;
const PC_RESET_CPU: u8 = 1 << 2;

/// Serves a port read of the platform; `false` when the port is not ours.
pub(crate) fn read(port: u16, data: &mut [u8]) -> bool {
    let value = match port {
        PVPANIC_PORT => PANICKED | CRASH_LOADED,
        // No wake status, no sleep in progress, no reset in progress.
        SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT | RESET_PORT | PC_RESET_PORT => 0,
        // Nothing to read, ready for a command: a guest that resets through it does not wait in vain.
        I8042_COMMAND_PORT => 0,
        _ => return false,
    };
    data.fill(value);
    true
}

/// Serves a port write of the platform: `None` when the port is not ours, else whether the VM ends.
pub(crate) fn write(port: u16, data: &[u8]) -> Option<Option<Ending>> {
    let value = *data.first()?;
    let ending = match port {
        SLEEP_CONTROL_PORT if value & SLP_EN != 0 && (value >> 2) & 7 == S5_TYPE => Some(Ending::PowerOff),
        RESET_PORT if value == RESET_VALUE => Some(Ending::Reset(ResetSource::Acpi)),
        PC_RESET_PORT if value & PC_RESET_CPU != 0 => Some(Ending::Reset(ResetSource::ResetControl)),
        I8042_COMMAND_PORT if value == I8042_PULSE_RESET => Some(Ending::Reset(ResetSource::Keyboard)),
        PVPANIC_PORT if value & PANICKED != 0 => Some(Ending::Panic(PanicKind::Panicked)),
        PVPANIC_PORT if value & CRASH_LOADED != 0 => Some(Ending::Panic(PanicKind::CrashKernel)),
        SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT | RESET_PORT | PC_RESET_PORT | PVPANIC_PORT | I8042_COMMAND_PORT => None,
        _ => return None,
    };
    Some(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ending_has_its_port_and_value() {
        assert_eq!(write(SLEEP_CONTROL_PORT, &[0x34]), Some(Some(Ending::PowerOff)));
        assert_eq!(write(SLEEP_CONTROL_PORT, &[0x14]), Some(None), "without SLP_EN nothing happens");
        assert_eq!(write(SLEEP_CONTROL_PORT, &[0x2c]), Some(None), "S3 is not offered");
        assert_eq!(write(RESET_PORT, &[1]), Some(Some(Ending::Reset(ResetSource::Acpi))));
        assert_eq!(write(RESET_PORT, &[2]), Some(None));
        assert_eq!(write(0xcf9, &[6]), Some(Some(Ending::Reset(ResetSource::ResetControl))));
        assert_eq!(write(0xcf9, &[2]), Some(None));
        assert_eq!(write(0x64, &[0xfe]), Some(Some(Ending::Reset(ResetSource::Keyboard))));
        assert_eq!(write(0x505, &[1]), Some(Some(Ending::Panic(PanicKind::Panicked))));
        assert_eq!(write(0x505, &[2]), Some(Some(Ending::Panic(PanicKind::CrashKernel))));
        assert_eq!(write(0x3f8, &[1]), None);
        assert_eq!(write(0x64, &[]), None);
    }

    #[test]
    fn reads_are_answered_only_here() {
        let mut data = [0xffu8; 4];
        assert!(read(PVPANIC_PORT, &mut data));
        assert_eq!(data, [3; 4]);
        assert!(read(0x64, &mut data) && data == [0; 4]);
        assert!(!read(0x60, &mut data));
    }
}
