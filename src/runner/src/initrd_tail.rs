//! The guest's configuration as one more cpio segment behind the initrd.

use std::io::Write;

use casemate_agent_protocol::{CONFIG_PATH, MAX_CONFIG};
use cpio::newc::{Builder, trailer};

use crate::error::{Error, Step};

const STEP: &str = "pack the guest's configuration";
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_400;

/// A newc archive with the directory and the file that the agent reads.
pub fn pack(config: &[u8]) -> Result<Vec<u8>, Error> {
    if config.len() > MAX_CONFIG {
        let why = format!("it has {} bytes, the agent reads at most {MAX_CONFIG}", config.len());
        return Err(Error::because(STEP, why));
    }
    let path = CONFIG_PATH.trim_start_matches('/');
    let mut out = Vec::with_capacity(config.len() + 512);
    if let Some((directory, _)) = path.rsplit_once('/') {
        let entry = Builder::new(directory).mode(DIRECTORY).nlink(2).write(&mut out, 0);
        entry.finish().step(STEP)?;
    }
    let mut entry = Builder::new(path).mode(FILE).nlink(1).write(&mut out, config.len() as u32);
    entry.write_all(config).step(STEP)?;
    entry.finish().step(STEP)?;
    trailer(&mut out).step(STEP)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_holds_the_file() {
        let segment = pack(b"{\"argv\":[]}").unwrap();
        let text = String::from_utf8_lossy(&segment);
        assert!(segment.starts_with(b"070701") && segment.len().is_multiple_of(4));
        assert!(text.contains("casemate/config.json") && text.contains("{\"argv\":[]}") && text.contains("TRAILER!!!"));
        let reader = cpio::newc::Reader::new(&segment[..]).unwrap();
        assert_eq!((reader.entry().name(), reader.entry().mode()), ("casemate", DIRECTORY));
        let reader = cpio::newc::Reader::new(reader.finish().unwrap()).unwrap();
        assert_eq!((reader.entry().name(), reader.entry().file_size()), ("casemate/config.json", 11));
    }

    #[test]
    fn a_giant_is_refused() {
        assert!(pack(&vec![b' '; MAX_CONFIG + 1]).is_err());
    }
}
