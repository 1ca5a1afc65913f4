//! Tiny guests, assembled in the test itself: a 32-bit PVH entry wrapped in an ELF file.
//!
//! Used by the kvm tier (local /dev/kvm, which may be of the PVM kind and emulates each guest instruction: keep
//! guests small and integer only) and by hostile virtio guests. The guest starts as the PVH protocol says: protected
//! mode, paging off, flat segments, `ebx` = physical address of `hvm_start_info`; this helper also sets up `esp`.

use casemate_vm::layout;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// What a guest-building closure returns.
pub type Asm = Result<(), IcedError>;

/// Physical address of the first instruction.
pub const LOAD_ADDR: u32 = 0x10_0000;
/// Initial stack pointer: grows down, above the code, inside the smallest memory a tiny guest gets (4 MiB).
pub const STACK_TOP: u32 = 0x20_0000;
/// Guest memory free for the guest's own data (rings, buffers): from here to the end of RAM.
pub const DATA_ADDR: u32 = 0x20_0000;

const EHDR: usize = 64;
const PHDR: usize = 56;
const CODE_OFFSET: usize = 0x1000;
const NOTE_OFFSET: usize = EHDR + 2 * PHDR;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Assembles a guest and returns it as an ELF file that any PVH loader accepts.
///
/// ```ignore
/// let elf = guest::pvh_elf(|a| {
///     guest::print(a, b"A")?;
///     guest::power_off(a)
/// });
/// ```
///
/// # Panics
/// When the closure emits code that cannot be encoded: that is a mistake in the test.
pub fn pvh_elf(build: impl FnOnce(&mut CodeAssembler) -> Asm) -> Vec<u8> {
    let mut asm = CodeAssembler::new(32).expect("32-bit assembler");
    asm.mov(esp, STACK_TOP).expect("encodable");
    build(&mut asm).expect("guest code is encodable");
    // Whatever falls off the end stops instead of running into zeroes.
    triple_fault(&mut asm).expect("encodable");
    elf_with_note(&asm.assemble(u64::from(LOAD_ADDR)).expect("guest code assembles"), LOAD_ADDR)
}

/// Wraps raw 32-bit code, loaded at [`LOAD_ADDR`], whose PVH note names `entry`.
pub fn elf_with_note(code: &[u8], entry: u32) -> Vec<u8> {
    let mut elf = vec![0u8; CODE_OFFSET];
    elf[..16].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    put(&mut elf, 16, &2u16.to_le_bytes()); // ET_EXEC
    put(&mut elf, 18, &62u16.to_le_bytes()); // EM_X86_64
    put(&mut elf, 20, &1u32.to_le_bytes());
    put(&mut elf, 24, &u64::from(entry).to_le_bytes());
    put(&mut elf, 32, &(EHDR as u64).to_le_bytes()); // e_phoff
    put(&mut elf, 52, &(EHDR as u16).to_le_bytes());
    put(&mut elf, 54, &(PHDR as u16).to_le_bytes());
    put(&mut elf, 56, &2u16.to_le_bytes()); // e_phnum
    let load = Segment { kind: 1, offset: CODE_OFFSET, addr: u64::from(LOAD_ADDR), len: code.len() };
    put(&mut elf, EHDR, &load.bytes());
    let note = Segment { kind: 4, offset: NOTE_OFFSET, addr: 0, len: 20 };
    put(&mut elf, EHDR + PHDR, &note.bytes());
    for (i, word) in [4u32, 4, XEN_ELFNOTE_PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0"), entry].into_iter().enumerate() {
        put(&mut elf, NOTE_OFFSET + i * 4, &word.to_le_bytes());
    }
    elf.extend_from_slice(code);
    elf
}

struct Segment {
    kind: u32,
    offset: usize,
    addr: u64,
    len: usize,
}

impl Segment {
    fn bytes(&self) -> [u8; PHDR] {
        let mut out = [0u8; PHDR];
        put(&mut out, 0, &self.kind.to_le_bytes());
        put(&mut out, 4, &7u32.to_le_bytes());
        put(&mut out, 8, &(self.offset as u64).to_le_bytes());
        put(&mut out, 16, &self.addr.to_le_bytes());
        put(&mut out, 24, &self.addr.to_le_bytes());
        put(&mut out, 32, &(self.len as u64).to_le_bytes());
        put(&mut out, 40, &(self.len as u64).to_le_bytes());
        out
    }
}

fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    buf[at..at + bytes.len()].copy_from_slice(bytes);
}

/// One byte to an I/O port. Clobbers eax, edx.
pub fn out8(a: &mut CodeAssembler, port: u16, value: u8) -> Asm {
    a.mov(edx, u32::from(port))?;
    a.mov(eax, u32::from(value))?;
    a.out(dx, al)
}

/// The text to COM1, one byte per exit. Clobbers eax, edx.
pub fn print(a: &mut CodeAssembler, text: &[u8]) -> Asm {
    text.iter().try_for_each(|byte| out8(a, layout::COM1_PORT, *byte))
}

/// The byte in `al` to COM1. Clobbers edx.
pub fn print_al(a: &mut CodeAssembler) -> Asm {
    a.mov(edx, u32::from(layout::COM1_PORT))?;
    a.out(dx, al)
}

/// A 32-bit store to a physical address (RAM or MMIO). Clobbers edi.
pub fn store32(a: &mut CodeAssembler, addr: u32, value: u32) -> Asm {
    a.mov(edi, addr)?;
    a.mov(dword_ptr(edi), value)
}

/// A 16-bit store to a physical address. Clobbers edi.
pub fn store16(a: &mut CodeAssembler, addr: u32, value: u16) -> Asm {
    a.mov(edi, addr)?;
    a.mov(word_ptr(edi), u32::from(value))
}

/// A 64-bit store as two halves, low first. Clobbers edi.
pub fn store64(a: &mut CodeAssembler, addr: u32, value: u64) -> Asm {
    store32(a, addr, value as u32)?;
    store32(a, addr + 4, (value >> 32) as u32)
}

/// A 32-bit load from a physical address into eax. Clobbers edi.
pub fn load32(a: &mut CodeAssembler, addr: u32) -> Asm {
    a.mov(edi, addr)?;
    a.mov(eax, dword_ptr(edi))
}

/// ACPI S5 through the sleep control register: the VM ends as a clean power-off.
pub fn power_off(a: &mut CodeAssembler) -> Asm {
    out8(a, layout::SLEEP_CONTROL_PORT, layout::SLEEP_S5)?;
    spin(a)
}

/// ACPI reset register: the VM ends as a reboot.
pub fn reset(a: &mut CodeAssembler) -> Asm {
    out8(a, layout::RESET_PORT, layout::RESET_VALUE)?;
    spin(a)
}

/// The pvpanic port: the VM ends as a guest panic.
pub fn panic(a: &mut CodeAssembler) -> Asm {
    out8(a, layout::PVPANIC_PORT, 1)?;
    spin(a)
}

/// An empty IDT and an undefined opcode: the VM ends as a triple fault.
pub fn triple_fault(a: &mut CodeAssembler) -> Asm {
    a.push(0)?;
    a.push(0)?;
    a.lidt(fword_ptr(esp))?;
    a.ud2()
}

/// Sleeps for ever: no interrupt wakes it.
pub fn halt(a: &mut CodeAssembler) -> Asm {
    let mut here = a.create_label();
    a.cli()?;
    a.set_label(&mut here)?;
    a.hlt()?;
    a.jmp(here)
}

/// Runs for ever without leaving the guest.
pub fn spin(a: &mut CodeAssembler) -> Asm {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.jmp(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_an_elf_with_its_note() {
        let elf = pvh_elf(|a| print(a, b"A"));
        assert_eq!(&elf[..4], b"\x7fELF");
        assert_eq!(&elf[NOTE_OFFSET + 12..NOTE_OFFSET + 16], b"Xen\0");
        assert_eq!(elf[CODE_OFFSET], 0xbc, "mov esp, imm32");
    }
}
