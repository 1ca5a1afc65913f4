//! Files in and out. In the guest's own root, with root's rights: the guest is one trust zone, and its paths are its own.
use crate::session::{Refusal, send};
use crate::stream::Stream;
use casemate_agent_protocol::{CopyFormat, ErrorKind, FrameDecoder, FromAgent, MAX_CHUNK, ToAgent};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// The client's Data messages as a reader; its end is DataEof.
struct Incoming<'a> {
    stream: &'a mut Stream,
    decoder: &'a mut FrameDecoder,
    chunk: Vec<u8>,
    taken: usize,
    over: bool,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.chunk.len() && !self.over {
            match self.decoder.read(self.stream).map_err(io::Error::other)? {
                Some(ToAgent::Data(bytes)) => {
                    self.chunk = bytes.0;
                    self.taken = 0;
                }
                Some(ToAgent::DataEof) => self.over = true,
                Some(_) => return Err(io::Error::other("only data belong to this session")),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.taken);
        buffer[..n].copy_from_slice(&self.chunk[self.taken..self.taken + n]);
        self.taken += n;
        Ok(n)
    }
}

pub fn copy_in(stream: &mut Stream, decoder: &mut FrameDecoder, path: &str, format: CopyFormat) -> Result<(), Refusal> {
    let target = absolute(path)?;
    let mut incoming = Incoming { stream, decoder, chunk: Vec::new(), taken: 0, over: false };
    let done = match format {
        CopyFormat::Tar => unpack(&mut incoming, &target),
        CopyFormat::File { mode, uid, gid } => write_file(&mut incoming, &target, mode, (uid, gid)),
    };
    // Also after a failure: the client is still sending, and would see a broken pipe instead of the reason.
    let drained = io::copy(&mut incoming, &mut io::sink());
    done.and(drained.map(drop)).map_err(|e| Refusal::io("writing to", path, &e))
}

fn absolute(path: &str) -> Result<PathBuf, Refusal> {
    if path.starts_with('/') && path.len() <= 4096 && !path.contains('\0') {
        return Ok(PathBuf::from(path));
    }
    Err(Refusal::new(ErrorKind::Protocol, "the guest path of a copy must be absolute"))
}

fn unpack(incoming: &mut Incoming<'_>, target: &Path) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    let mut archive = tar::Archive::new(incoming);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    archive.set_unpack_xattrs(false);
    archive.set_overwrite(true);
    archive.unpack(target)
}

/// Through a new file beside the target, so that a broken copy leaves the old one.
fn write_file(incoming: &mut Incoming<'_>, target: &Path, mode: u32, owner: (u32, u32)) -> io::Result<()> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    if target.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let mut partial = name.to_owned();
    partial.push(format!(".casemate-{:?}", std::thread::current().id()));
    let partial = target.with_file_name(partial);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        io::copy(incoming, &mut file)?;
        if rustix::process::geteuid().is_root() {
            fchown(&file, Some(owner.0), Some(owner.1))?;
        }
        file.set_permissions(std::fs::Permissions::from_mode(mode & 0o7777))?;
        std::fs::rename(&partial, target)
    };
    let mut write = write;
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// The archive's bytes as Data messages.
struct Outgoing<'a> {
    stream: &'a mut Stream,
    chunk: Vec<u8>,
}

impl Outgoing<'_> {
    fn send_chunk(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() {
            let bytes = std::mem::take(&mut self.chunk);
            send(self.stream, &FromAgent::Data(bytes.as_slice().into())).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(MAX_CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..n]);
        if self.chunk.len() == MAX_CHUNK {
            self.send_chunk()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_chunk()
    }
}

pub fn copy_out(stream: &mut Stream, path: &str) -> Result<(), Refusal> {
    let source = absolute(path)?;
    let failed = |e: &io::Error| Refusal::io("reading", path, e);
    let meta = std::fs::symlink_metadata(&source).map_err(|e| failed(&e))?;
    let name = source.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut archive = tar::Builder::new(Outgoing { stream, chunk: Vec::with_capacity(MAX_CHUNK) });
    archive.follow_symlinks(false);
    archive.sparse(false);
    let packed = if meta.is_dir() {
        archive.append_dir_all(&name, &source)
    } else if meta.is_file() {
        File::open(&source).and_then(|mut file| archive.append_file(&name, &mut file))
    } else {
        archive.append_path_with_name(&source, &name)
    };
    packed.and_then(|()| archive.into_inner()).and_then(|mut out| out.flush()).map_err(|e| failed(&e))?;
    send(stream, &FromAgent::DataEof)
}
