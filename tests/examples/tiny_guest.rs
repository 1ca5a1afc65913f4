//! Writes the tiny guest "print A, power off" to a file: for benches and for looking by hand.

use casemate_tests::guest;

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).ok_or(std::io::ErrorKind::InvalidInput)?;
    let elf = guest::pvh_elf(|a| {
        guest::print(a, b"A\n")?;
        guest::power_off(a)
    });
    std::fs::write(path, elf)
}
