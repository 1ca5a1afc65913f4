//! Files between host and guest, as a stream of data messages.
//!
//! Trust: what comes out of the guest is an attacker's archive; [`crate::unpack`] decides what of it reaches the disk.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use casemate_agent_protocol::{Bytes, CopyFormat, FromAgent, MAX_CHUNK, SessionError, ToAgent};

use crate::agent::Conversation;
use crate::error::{Attempt, Error, Result};

/// Data messages as a writer.
struct Outgoing<'a> {
    talk: &'a mut Conversation,
    chunk: Vec<u8>,
    /// The first failure, which a writer's error type cannot carry.
    failed: Option<Error>,
}

impl Outgoing<'_> {
    fn send_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let bytes = Bytes(std::mem::replace(&mut self.chunk, Vec::with_capacity(MAX_CHUNK)));
        self.talk.send(&ToAgent::Data(bytes)).map_err(|error| {
            self.failed = Some(error);
            io::Error::other("the guest's agent does not take more")
        })
    }
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(MAX_CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == MAX_CHUNK {
            self.send_chunk()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_chunk()
    }
}

/// Sends whatever `write` writes to `path` in the guest.
fn send(
    stream: UnixStream,
    path: &str,
    format: CopyFormat,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let mut talk = Conversation::open(stream, &ToAgent::CopyIn { path: path.into(), format }, None)?;
    let mut out = Outgoing { talk: &mut talk, chunk: Vec::with_capacity(MAX_CHUNK), failed: None };
    let written = write(&mut out).and_then(|()| out.flush());
    if let Some(failed) = out.failed {
        return Err(failed);
    }
    written.attempt(|| format!("sending files to {path}"))?;
    talk.send(&ToAgent::DataEof)?;
    match talk.receive()? {
        FromAgent::Done => Ok(()),
        other => Err(SessionError::Unsolicited(other.name()).into()),
    }
}

/// One file's content, with its permission bits, owned by the guest's root.
pub fn file_in(stream: UnixStream, mut source: &File, path: &str) -> Result<()> {
    let meta = source.metadata().attempt(|| "looking at the file to copy".into())?;
    let format = CopyFormat::File { mode: meta.permissions().mode() & 0o777, uid: 0, gid: 0 };
    send(stream, path, format, |out| io::copy(&mut source, out).map(drop))
}

/// A file or tree, as `name` below the directory `path` of the guest. Symbolic links stay links.
pub fn tree_in(stream: UnixStream, source: &Path, name: &str, path: &str) -> Result<()> {
    send(stream, path, CopyFormat::Tar, |out| {
        let mut archive = tar::Builder::new(out);
        archive.follow_symlinks(false);
        archive.sparse(false);
        let meta = source.symlink_metadata()?;
        if meta.is_dir() {
            archive.append_dir_all(name, source)?;
        } else {
            archive.append_path_with_name(source, name)?;
        }
        archive.finish()
    })
}

/// A tar archive, unpacked below the directory `path` of the guest.
pub fn archive_in(stream: UnixStream, archive: &mut dyn Read, path: &str) -> Result<()> {
    send(stream, path, CopyFormat::Tar, |out| io::copy(archive, out).map(drop))
}

/// The agent's archive as a reader; at most `most` bytes of it.
#[derive(Debug)]
pub struct Incoming {
    talk: Conversation,
    chunk: Vec<u8>,
    taken: usize,
    over: bool,
    left: u64,
    failed: Option<Error>,
}

impl Incoming {
    /// Asks for `path` of the guest.
    pub fn open(stream: UnixStream, path: &str, most: u64) -> Result<Incoming> {
        let talk = Conversation::open(stream, &ToAgent::CopyOut { path: path.into() }, None)?;
        Ok(Incoming { talk, chunk: Vec::new(), taken: 0, over: false, left: most, failed: None })
    }

    /// The error behind a failed read.
    pub fn explain(self, error: Error) -> Error {
        self.failed.unwrap_or(error)
    }

    fn next_chunk(&mut self) -> Result<()> {
        match self.talk.receive()? {
            FromAgent::Data(bytes) => {
                self.left = self.left.checked_sub(bytes.0.len() as u64).ok_or_else(|| {
                    Error::Copy("the guest sends more than the limit of this copy (--max-size)".into())
                })?;
                self.chunk = bytes.0;
                self.taken = 0;
            }
            FromAgent::DataEof => self.over = true,
            other => return Err(SessionError::Unsolicited(other.name()).into()),
        }
        Ok(())
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.chunk.len() && !self.over {
            if let Err(error) = self.next_chunk() {
                self.failed = Some(error);
                return Err(io::Error::other("the guest's archive ended early"));
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.taken);
        buffer[..n].copy_from_slice(&self.chunk[self.taken..self.taken + n]);
        self.taken += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_agent_protocol::{ErrorKind, FrameDecoder, PROTOCOL_VERSION, encode};

    fn agent(answers: Vec<FromAgent>, until_eof: bool) -> (UnixStream, std::thread::JoinHandle<Vec<u8>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let mut decoder = FrameDecoder::new();
            let mut data = Vec::new();
            theirs.write_all(&encode(&FromAgent::Hello { version: PROTOCOL_VERSION }).unwrap()).unwrap();
            let mut open = until_eof;
            while open {
                match decoder.read::<ToAgent>(&mut theirs) {
                    Ok(Some(ToAgent::Data(bytes))) => data.extend(bytes.0),
                    Ok(Some(ToAgent::DataEof) | None) | Err(_) => open = false,
                    Ok(Some(_)) => {}
                }
            }
            for answer in answers {
                if theirs.write_all(&encode(&answer).unwrap()).is_err() {
                    break;
                }
            }
            data
        });
        (ours, thread)
    }

    #[test]
    fn a_file_and_a_tree_go_in() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        std::fs::write(&path, vec![b'x'; 3 * MAX_CHUNK + 5]).unwrap();
        let (stream, guest) = agent(vec![FromAgent::Done], true);
        file_in(stream, &File::open(&path).unwrap(), "/f").unwrap();
        assert_eq!(guest.join().unwrap().len(), 3 * MAX_CHUNK + 5);
        let (stream, guest) = agent(vec![FromAgent::Done], true);
        tree_in(stream, temp.path(), "new", "/").unwrap();
        let data = guest.join().unwrap();
        let mut archive = tar::Archive::new(data.as_slice());
        let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert!(names.contains(&"new/f".into()), "{names:?}");
    }

    #[test]
    fn the_agent_says_why_not() {
        let no = FromAgent::Error { kind: ErrorKind::Io, message: "no space".into() };
        let (stream, _guest) = agent(vec![no.clone()], true);
        let error = archive_in(stream, &mut [0u8; 10].as_slice(), "/d").unwrap_err();
        assert_eq!(error.to_string(), "the guest's agent: no space");
        let (stream, _guest) = agent(vec![no], false);
        let mut incoming = Incoming::open(stream, "/d", 10).unwrap();
        let read = incoming.read(&mut [0; 10]).unwrap_err();
        let read = Error::Io { attempt: "x".into(), source: read };
        assert_eq!(incoming.explain(read).to_string(), "the guest's agent: no space");
    }

    #[test]
    fn more_than_the_limit_and_what_is_no_data_are_refused() {
        let chunk = FromAgent::Data(Bytes(vec![0; 100]));
        for (answers, said) in
            [(vec![chunk.clone(), chunk.clone()], "limit"), (vec![chunk.clone(), FromAgent::Done], "session")]
        {
            let (stream, _guest) = agent(answers, false);
            let mut incoming = Incoming::open(stream, "/d", 150).unwrap();
            let error = io::copy(&mut incoming, &mut io::sink()).unwrap_err();
            let error = incoming.explain(Error::Io { attempt: "x".into(), source: error }).to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
