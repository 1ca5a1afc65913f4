//! Prints the initrd segment with a guest configuration: `segment CONFIG.json > segment.cpio`, or, with a command
//! instead of a file, of a detached guest that runs it: `segment -- CMD...`.
use casemate_agent_protocol::GuestConfig;
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let config = match arguments.first().map(String::as_str) {
        Some("--") => GuestConfig::new(arguments.split_off(1)),
        Some(path) => GuestConfig::from_json(&std::fs::read(path)?)?,
        None => return Err("usage: segment CONFIG.json | segment -- CMD...".into()),
    };
    std::io::stdout().write_all(&config.to_initrd_segment()?)?;
    Ok(())
}
