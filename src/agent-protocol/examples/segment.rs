//! Prints the initrd segment with a guest configuration: `segment CONFIG.json > segment.cpio`, or, with a command
//! instead of a file, of a detached guest that runs it: `segment -- CMD...`. For booting a guest without the runner.
use casemate_agent_protocol::{CONFIG_PATH, GuestConfig};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let config = match arguments.first().map(String::as_str) {
        Some("--") => GuestConfig::new(arguments.split_off(1)),
        Some(path) => GuestConfig::from_json(&std::fs::read(path)?)?,
        None => return Err("usage: segment CONFIG.json | segment -- CMD...".into()),
    };
    let json = config.to_json()?;
    let entry = cpio::newc::Builder::new(CONFIG_PATH.trim_start_matches('/')).ino(1).nlink(1).mode(0o100_600);
    let mut writer = entry.write(std::io::stdout(), u32::try_from(json.len())?);
    writer.write_all(&json)?;
    cpio::newc::trailer(writer.finish()?)?;
    Ok(())
}
