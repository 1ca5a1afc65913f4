//! `STATE/evidence/`: the host's key and chain. Root's alone; one process at a time (flock of the directory).
//!
//! ```text
//! key           PKCS #8 PEM, 0400, made once; key.pub.pem, its public half
//! chain         header and records, a line each, only ever appended to
//! chain.next    the line that is about to be appended, whole and on stable storage before the first byte of it is
//! ```
//! A death in between leaves `chain.next`: the next call completes the append, whatever part of it was written. A chain that
//! ends within a line and has no such file was damaged by something else: refused, never cut.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use casemate_evidence::chain::{Header, MAX_LINE, VERSION};
use casemate_evidence::{Digest, KeyPair, PublicKey, Record, Refused};
use casemate_sys::path::{self, FileType, Mode, OFlags};
use rustix::fs::{AtFlags, FlockOperation, RenameFlags};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::StepFailed;

const DIR: &str = "evidence";
const KEY: &str = "key";
const KEY_NEW: &str = "key.new";
const PUBLIC: &str = "key.pub.pem";
const CHAIN: &str = "chain";
const NEXT: &str = "chain.next";
const MAX_KEY: usize = 4096;
/// Most bytes of the chain that are exported at once.
const MAX_EXPORT: usize = 48 << 20;
const REMEDY: &str = "restore it from a backup; or move the directory away, which begins a new chain with a new key";

/// The directory, locked.
pub struct Vault {
    path: PathBuf,
    dir: OwnedFd,
}

/// Where the next record stands.
pub struct Position {
    pub sequence: u64,
    pub previous: Digest,
}

fn failed(attempt: &str, error: impl std::error::Error) -> StepFailed {
    StepFailed::stage(attempt, error)
}

fn io(attempt: &'static str) -> impl Fn(rustix::io::Errno) -> StepFailed {
    move |error| failed(attempt, std::io::Error::from(error))
}

impl Vault {
    pub fn open(state_dir: &Path) -> Result<Vault, StepFailed> {
        const STAGE: &str = "open the evidence directory";
        std::fs::create_dir_all(state_dir).map_err(|e| failed(STAGE, e))?;
        let state = path::open_no_symlinks(state_dir, OFlags::RDONLY | OFlags::DIRECTORY);
        let state = state.map_err(|e| failed(STAGE, e))?;
        match rustix::fs::mkdirat(&state, DIR, Mode::from_raw_mode(0o700)) {
            Err(error) if error != rustix::io::Errno::EXIST => return Err(io(STAGE)(error)),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = path::open_beneath(state.as_fd(), Path::new(DIR), flags, Mode::empty());
        let dir = dir.map_err(|e| failed(STAGE, e))?;
        let path = state_dir.join(DIR);
        let is = path::identity(&dir).map_err(|e| failed(STAGE, e))?;
        if is.uid != rustix::process::geteuid().as_raw() || is.mode & 0o077 != 0 {
            let why = format!("{} must be root's, and nobody else's to look into (chmod 0700)", path.display());
            return Err(StepFailed::because(STAGE, why));
        }
        rustix::io::retry_on_intr(|| rustix::fs::flock(&dir, FlockOperation::LockExclusive)).map_err(io(STAGE))?;
        Ok(Vault { path, dir })
    }

    /// The host's key; made if there is neither key nor chain.
    pub fn key(&self) -> Result<KeyPair, StepFailed> {
        const STAGE: &str = "read the host's key";
        let key = match self.file(KEY, OFlags::RDONLY)? {
            Some(file) => self.read_key(file)?,
            None if self.file(CHAIN, OFlags::RDONLY)?.is_some() => {
                let why = format!("{} has a chain and no key; {REMEDY}", self.path.display());
                return Err(StepFailed::because(STAGE, why));
            }
            None => self.make_key()?,
        };
        self.publish(key.public())?;
        Ok(key)
    }

    fn read_key(&self, mut file: File) -> Result<KeyPair, StepFailed> {
        const STAGE: &str = "read the host's key";
        let is = path::identity(&file).map_err(|e| failed(STAGE, e))?;
        if is.uid != rustix::process::geteuid().as_raw() || is.mode & 0o377 != 0 || is.nlink != 1 {
            let path = self.path.join(KEY);
            let why = format!(
                "{} must be root's alone (owner 0, mode 0400, one name) and has owner {}, mode {:04o}, {} names: whoever \
                 could read it can sign as this host; {REMEDY}",
                path.display(),
                is.uid,
                is.mode,
                is.nlink
            );
            return Err(StepFailed::because(STAGE, why));
        }
        let mut text = String::new();
        Read::by_ref(&mut file).take(MAX_KEY as u64).read_to_string(&mut text).map_err(|e| failed(STAGE, e))?;
        KeyPair::from_pem(&text).map_err(|e| failed(STAGE, e))
    }

    /// On stable storage before it has its name, and never in the place of another.
    fn make_key(&self) -> Result<KeyPair, StepFailed> {
        const STAGE: &str = "make the host's key";
        let mut seed = [0; 32];
        let mut got = 0;
        while got < seed.len() {
            got += getrandom(&mut seed[got..], GetRandomFlags::empty()).map_err(io(STAGE))?;
        }
        self.remove(KEY_NEW)?;
        self.write_new(KEY_NEW, 0o400, KeyPair::pem(&seed).as_bytes())?;
        rustix::fs::renameat_with(&self.dir, KEY_NEW, &self.dir, KEY, RenameFlags::NOREPLACE).map_err(io(STAGE))?;
        self.sync()?;
        KeyPair::from_seed(&seed).map_err(|e| failed(STAGE, e))
    }

    /// The public half in a file, for those who copy it.
    fn publish(&self, key: PublicKey) -> Result<(), StepFailed> {
        let pem = key.to_pem();
        if let Ok(there) = path::read_beneath(self.dir.as_fd(), PUBLIC, MAX_KEY)
            && there == pem.as_bytes()
        {
            return Ok(());
        }
        self.remove(PUBLIC)?;
        self.write_new(PUBLIC, 0o444, pem.as_bytes())
    }

    /// Appends the record that `make` signs for the next position, and answers what else it made.
    pub fn append<T>(
        &self,
        make: impl FnOnce(Position, &KeyPair) -> Result<(T, Record), Refused>,
    ) -> Result<T, StepFailed> {
        const STAGE: &str = "append to the chain";
        let key = self.key()?;
        let mut chain = self.whole_chain(key.public())?;
        let position = match self.last(&mut chain, key.public())? {
            None => Position { sequence: 1, previous: key.public().id() },
            Some(last) => Position {
                sequence: last.link.sequence + 1,
                previous: last.link.digest().map_err(|e| failed(STAGE, e))?,
            },
        };
        let (made, record) = make(position, &key).map_err(|e| failed(STAGE, e))?;
        let line = record.line().map_err(|e| failed(STAGE, e))?;
        if line.len() > MAX_LINE {
            return Err(StepFailed::because(STAGE, "the record is too long"));
        }
        self.announce(&line)?;
        self.write_out(&mut chain, &line)?;
        Ok(made)
    }

    /// The chain as text, completed if its last writer died.
    pub fn export(&self) -> Result<String, StepFailed> {
        const STAGE: &str = "export the chain";
        let key = self.key()?;
        let mut chain = self.whole_chain(key.public())?;
        chain.seek(SeekFrom::Start(0)).map_err(|e| failed(STAGE, e))?;
        let mut text = String::new();
        chain.take(MAX_EXPORT as u64 + 1).read_to_string(&mut text).map_err(|e| failed(STAGE, e))?;
        if text.len() > MAX_EXPORT {
            let why = format!("it is larger than {MAX_EXPORT} bytes; copy {}", self.path.join(CHAIN).display());
            return Err(StepFailed::because(STAGE, why));
        }
        Ok(text)
    }

    /// The chain's file, with a header, ended by a whole line.
    fn whole_chain(&self, key: PublicKey) -> Result<File, StepFailed> {
        const STAGE: &str = "read the chain";
        let header = Header { version: VERSION, signer: key }.line().map_err(|e| failed(STAGE, e))?;
        let mut chain = match self.file(CHAIN, OFlags::RDWR | OFlags::APPEND)? {
            Some(chain) => chain,
            None => self.begin_chain(&header)?,
        };
        let mut head = vec![0; header.len()];
        let begins = chain.seek(SeekFrom::Start(0)).and_then(|_| chain.read_exact(&mut head));
        if begins.is_err() || head != header {
            return Err(self.damaged("it does not begin with this host's key"));
        }
        self.complete(&mut chain, key)?;
        Ok(chain)
    }

    fn begin_chain(&self, header: &[u8]) -> Result<File, StepFailed> {
        const NEW: &str = "chain.new";
        const STAGE: &str = "begin the chain";
        self.remove(NEW)?;
        self.write_new(NEW, 0o600, header)?;
        rustix::fs::renameat_with(&self.dir, NEW, &self.dir, CHAIN, RenameFlags::NOREPLACE).map_err(io(STAGE))?;
        self.sync()?;
        let chain = self.file(CHAIN, OFlags::RDWR | OFlags::APPEND)?;
        chain.ok_or_else(|| StepFailed::because(STAGE, "it is gone again"))
    }

    /// Ends the append that a dead process began.
    fn complete(&self, chain: &mut File, key: PublicKey) -> Result<(), StepFailed> {
        const STAGE: &str = "complete the chain";
        let (_, part) = self.tail(chain)?;
        let Some(next) = self.file(NEXT, OFlags::RDONLY)? else {
            return match part.is_empty() {
                true => Ok(()),
                false => Err(self.damaged("its last line has no end")),
            };
        };
        let mut line = Vec::new();
        next.take(MAX_LINE as u64 + 1).read_to_end(&mut line).map_err(|e| failed(STAGE, e))?;
        let record = line.strip_suffix(b"\n").map(|line| Record::parse(line, key));
        let Some(Ok(record)) = record else {
            return Err(self.damaged("chain.next holds no record of this host's"));
        };
        let last = self.last(chain, key)?;
        if part.is_empty() && last.as_ref() == Some(&record) {
            return self.remove(NEXT);
        }
        let before = match &last {
            None => (0, key.id()),
            Some(last) => (last.link.sequence, last.link.digest().map_err(|e| failed(STAGE, e))?),
        };
        if before != (record.link.sequence - 1, record.link.previous.clone()) || !line.starts_with(&part) {
            return Err(self.damaged("chain.next does not go on where it ends"));
        }
        self.write_out(chain, &line[part.len()..])
    }

    /// The line that will be appended, on stable storage under its name.
    fn announce(&self, line: &[u8]) -> Result<(), StepFailed> {
        const NEW: &str = "chain.next.new";
        self.remove(NEW)?;
        self.write_new(NEW, 0o600, line)?;
        rustix::fs::renameat(&self.dir, NEW, &self.dir, NEXT).map_err(io("announce a record"))?;
        self.sync()
    }

    fn write_out(&self, chain: &mut File, rest: &[u8]) -> Result<(), StepFailed> {
        const STAGE: &str = "append to the chain";
        chain.write_all(rest).and_then(|()| chain.sync_data()).map_err(|e| failed(STAGE, e))?;
        self.remove(NEXT)
    }

    /// The last whole line, if it is no header, as a record of this key.
    fn last(&self, chain: &mut File, key: PublicKey) -> Result<Option<Record>, StepFailed> {
        let (line, _) = self.tail(chain)?;
        match line {
            None => Err(self.damaged("it has no whole line")),
            Some(line) if Header::parse(&line).is_ok() => Ok(None),
            Some(line) => Record::parse(&line, key)
                .map(Some)
                .map_err(|e| self.damaged(&format!("its last record is not this host's: {e}"))),
        }
    }

    /// The last whole line without its end, and what stands after it.
    fn tail(&self, chain: &mut File) -> Result<(Option<Vec<u8>>, Vec<u8>), StepFailed> {
        const STAGE: &str = "read the chain's end";
        let length = chain.metadata().map_err(|e| failed(STAGE, e))?.len();
        let from = length.saturating_sub(2 * MAX_LINE as u64 + 2);
        let mut bytes = Vec::new();
        let read = chain.seek(SeekFrom::Start(from)).and_then(|_| chain.read_to_end(&mut bytes));
        read.map_err(|e| failed(STAGE, e))?;
        let Some(end) = bytes.iter().rposition(|b| *b == b'\n') else { return Ok((None, bytes)) };
        let part = bytes.split_off(end + 1);
        bytes.pop();
        let begin = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let whole = begin > 0 || from == 0;
        Ok((whole.then(|| bytes.split_off(begin)), part))
    }

    fn damaged(&self, why: &str) -> StepFailed {
        StepFailed::because("read the chain", format!("{}: {why}; {REMEDY}", self.path.join(CHAIN).display()))
    }

    /// Opens a regular file of ours; no link is followed.
    fn file(&self, name: &str, flags: OFlags) -> Result<Option<File>, StepFailed> {
        let stage = format!("open {}", self.path.join(name).display());
        let fd = match path::open_beneath(self.dir.as_fd(), Path::new(name), flags | OFlags::NONBLOCK, Mode::empty()) {
            Ok(fd) => fd,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&stage, error)),
        };
        let is = path::identity(&fd).map_err(|e| failed(&stage, e))?;
        match is.kind == FileType::RegularFile && is.uid == rustix::process::geteuid().as_raw() && is.mode & 0o022 == 0
        {
            true => Ok(Some(File::from(fd))),
            false => Err(StepFailed::because(&stage, "it must be a regular file of root's that nobody else can write")),
        }
    }

    fn write_new(&self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), StepFailed> {
        let stage = format!("write {}", self.path.join(name).display());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let fd = path::open_beneath(self.dir.as_fd(), Path::new(name), flags, Mode::from_raw_mode(mode));
        let mut file = File::from(fd.map_err(|e| failed(&stage, e))?);
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| failed(&stage, e))
    }

    fn remove(&self, name: &str) -> Result<(), StepFailed> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Err(error) if error != rustix::io::Errno::NOENT => Err(io("remove a file of the chain")(error)),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), StepFailed> {
        rustix::fs::fsync(&self.dir).map_err(io("put the evidence directory on stable storage"))
    }
}

#[cfg(test)]
#[path = "vault_tests.rs"]
mod tests;
