//! A disk made of several images: qcow2 overlays above one base, top to bottom.
//!
//! The chain is what the plan declares. The headers must agree with it, image by image: a name in a header is compared
//! with there being a next image, and never followed. Only the top is written; everything below is open read-only.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

use thiserror::Error;

use crate::qcow2::{self, Emptied, Extent, Header, Image};
use crate::{BlockBackend, check_read, check_write};

/// Images of one disk, at most.
pub const CHAIN_MAX: usize = 16;

/// Named by the plan, never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

/// Why a chain cannot be used; `image` counts from the top, which is 0.
#[derive(Debug, Error)]
pub enum ChainError {
    #[error("a disk has 1 to {CHAIN_MAX} images, not {0}")]
    Length(usize),
    #[error("image {image} of the chain")]
    Image { image: usize, source: qcow2::OpenError },
    #[error("cannot examine image {image} of the chain")]
    Examine { image: usize, source: io::Error },
    #[error("image {image} of the chain is neither a regular file nor a block device")]
    FileType { image: usize },
    #[error("image {image} of the chain is raw and not the last: a raw image has no backing file")]
    BelowRaw { image: usize },
    #[error(
        "image {image} of the chain has the backing file {name:?}, but no further image is declared: without it the \
         guest would read zeroes. Declare the whole chain (`backing`)"
    )]
    Undeclared { image: usize, name: String },
    #[error("image {image} of the chain has no backing file, but a further image is declared; leave it out")]
    NoBacking { image: usize },
    #[error("image {image} of the chain says that its backing file is {says}, declared is {declared}")]
    BackingFormat { image: usize, says: String, declared: &'static str },
}

/// One image below the top, or the top.
#[derive(Debug)]
enum Layer {
    Qcow2(Box<Image>),
    Raw { file: File, len: u64 },
}

/// A qcow2 image over those below it.
#[derive(Debug)]
pub struct ChainDisk {
    /// Top first; never empty, and the top is qcow2.
    layers: Vec<Layer>,
    size: u64,
    read_only: bool,
}

impl ChainDisk {
    /// Takes descriptors as they are, top to bottom, and checks that headers and declaration agree.
    pub fn open(images: Vec<(File, Format)>, read_only: bool) -> Result<Self, ChainError> {
        let count = images.len();
        if !(1..=CHAIN_MAX).contains(&count) {
            return Err(ChainError::Length(count));
        }
        let formats: Vec<Format> = images.iter().map(|(_, format)| *format).collect();
        let mut layers = Vec::with_capacity(count);
        for (image, (file, format)) in images.into_iter().enumerate() {
            let below = formats.get(image + 1).copied();
            layers.push(match format {
                Format::Raw if below.is_some() || image == 0 => return Err(ChainError::BelowRaw { image }),
                Format::Raw => raw(file, image)?,
                Format::Qcow2 => {
                    let failed = |source| ChainError::Image { image, source };
                    let header = Header::read(&file).map_err(|e| failed(e.into()))?;
                    agrees(&header, image, below)?;
                    let writable = image == 0 && !read_only;
                    Layer::Qcow2(Box::new(Image::open(file, header, writable).map_err(failed)?))
                }
            });
        }
        let size = layers.first().map_or(0, Layer::size);
        Ok(Self { layers, size, read_only })
    }

    fn top(&mut self) -> io::Result<&mut Image> {
        match self.layers.first_mut() {
            Some(Layer::Qcow2(image)) => Ok(image),
            _ => Err(ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// Writes inside one cluster that the top does not hold as it is needed: what is not written is copied up.
    fn copy_up(&mut self, was: Extent, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let cluster = self.top()?.cluster_size();
        let (start, within) = (offset - offset % cluster, (offset % cluster) as usize);
        if bytes.len() as u64 == cluster {
            return self.top()?.write_cluster(offset / cluster, was, bytes);
        }
        let mut buffer = self.top()?.take_buffer()?;
        // The last cluster may reach past the disk.
        let valid = (self.size - start).min(cluster) as usize;
        buffer[valid..].fill(0);
        let done = read(&mut self.layers, start, &mut buffer[..valid]).and_then(|()| {
            buffer[within..within + bytes.len()].copy_from_slice(bytes);
            self.top()?.write_cluster(offset / cluster, was, &buffer)
        });
        self.top()?.give_buffer(buffer);
        done
    }

    /// Zeroes inside one cluster.
    fn write_zero_bytes(&mut self, mut offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 16 << 10] = [0; 16 << 10];
        let end = offset + len;
        while offset < end {
            let n = (end - offset).min(ZEROES.len() as u64);
            self.write_at(offset, &ZEROES[..n as usize])?;
            offset += n;
        }
        Ok(())
    }

    /// Calls `work` for each cluster of a range with its extent; holes are passed over whole where `holes` is false.
    fn each_cluster(
        &mut self,
        offset: u64,
        len: u64,
        holes: bool,
        mut work: impl FnMut(&mut Self, Extent, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let cluster = self.top()?.cluster_size();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let top = self.top()?;
            top.make_room()?;
            let (extent, run) = top.extent(at, end - at)?;
            let run = if extent == Extent::Hole && !holes { run } else { run.min(cluster - at % cluster) };
            if extent != Extent::Hole || holes {
                work(self, extent, at, run)?;
            }
            at += run;
        }
        Ok(())
    }

    /// The whole of a cluster, the last one of the disk included.
    fn is_whole(&mut self, offset: u64, len: u64) -> io::Result<bool> {
        let cluster = self.top()?.cluster_size();
        Ok(offset.is_multiple_of(cluster) && (len == cluster || offset + len == self.size))
    }
}

impl Layer {
    fn size(&self) -> u64 {
        match self {
            Layer::Qcow2(image) => image.size(),
            Layer::Raw { len, .. } => *len,
        }
    }
}

fn raw(mut file: File, image: usize) -> Result<Layer, ChainError> {
    let examine = |source| ChainError::Examine { image, source };
    let meta = file.metadata().map_err(examine)?;
    let kind = meta.file_type();
    // A base of any length: what it lacks are zeroes, as everywhere past the end of a backing file.
    let len = match () {
        () if kind.is_file() => meta.len(),
        () if kind.is_block_device() => file.seek(SeekFrom::End(0)).map_err(examine)?,
        () => return Err(ChainError::FileType { image }),
    };
    Ok(Layer::Raw { file, len })
}

fn agrees(header: &Header, image: usize, below: Option<Format>) -> Result<(), ChainError> {
    match (&header.backing, below) {
        (None, None) => Ok(()),
        (Some(name), None) => Err(ChainError::Undeclared { image, name: name.clone() }),
        (None, Some(_)) => Err(ChainError::NoBacking { image }),
        (Some(_), Some(below)) => {
            let declared = match below {
                Format::Raw => "raw",
                Format::Qcow2 => "qcow2",
            };
            match &header.backing_format {
                Some(says) if says != declared => {
                    Err(ChainError::BackingFormat { image, says: says.clone(), declared })
                }
                _ => Ok(()),
            }
        }
    }
}

/// Reads from the first layer that has an answer, at most [`CHAIN_MAX`] deep; past the end of a layer are zeroes.
fn read(layers: &mut [Layer], offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let Some((layer, below)) = layers.split_first_mut() else {
        buf.fill(0);
        return Ok(());
    };
    let inside = layer.size().saturating_sub(offset).min(buf.len() as u64) as usize;
    let (mut buf, after) = buf.split_at_mut(inside);
    after.fill(0);
    let image = match layer {
        Layer::Raw { file, .. } => return file.read_exact_at(buf, offset),
        Layer::Qcow2(image) => image,
    };
    let mut at = offset;
    while !buf.is_empty() {
        let (extent, run) = image.extent(at, buf.len() as u64)?;
        let (now, later) = buf.split_at_mut(run as usize);
        match extent {
            Extent::Hole => read(below, at, now)?,
            Extent::Zero { .. } => now.fill(0),
            Extent::Data { host, .. } => image.read_data(host, now)?,
            Extent::Compressed { host, len } => {
                let within = at % image.cluster_size();
                image.read_compressed(host, len, within, now)?;
            }
        }
        buf = later;
        at += run;
    }
    Ok(())
}

impl BlockBackend for ChainDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_read(self, offset, buf.len() as u64)?;
        read(&mut self.layers, offset, buf)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_write(self, offset, buf.len() as u64)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let top = self.top()?;
            top.make_room()?;
            let cluster = top.cluster_size();
            let (extent, run) = top.extent(at, rest.len() as u64)?;
            let run = match extent {
                Extent::Data { host, copied } => {
                    top.write_in_place(at, host, copied, &rest[..run as usize])?;
                    run
                }
                _ => {
                    let run = run.min(cluster - at % cluster);
                    self.copy_up(extent, at, &rest[..run as usize])?;
                    run
                }
            };
            at += run;
            rest = &rest[run as usize..];
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.top()?.flush() }
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        check_write(self, offset, len)?;
        // Holes stay holes: what is below them is the guest's to discard only by writing.
        self.each_cluster(offset, len, false, |disk, extent, at, run| {
            if !disk.is_whole(at, run)? {
                return Ok(());
            }
            let top = disk.top()?;
            let emptied = top.empty_cluster(at / top.cluster_size(), extent, true)?;
            match (emptied, extent) {
                (Emptied::NotPossible, Extent::Data { host, .. }) => top.punch(host),
                _ => Ok(()),
            }
        })
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        check_write(self, offset, len)?;
        let alone = self.layers.len() == 1;
        self.each_cluster(offset, len, !alone, |disk, extent, at, run| {
            if matches!(extent, Extent::Zero { .. }) {
                return Ok(());
            }
            if disk.is_whole(at, run)? {
                let top = disk.top()?;
                if top.empty_cluster(at / top.cluster_size(), extent, unmap)? == Emptied::Done {
                    return Ok(());
                }
            }
            disk.write_zero_bytes(at, run)
        })
    }

    fn close(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.top()?.close() }
    }
}

#[cfg(test)]
impl ChainDisk {
    pub(crate) fn trace(&mut self) {
        self.top().unwrap().start_trace();
    }

    pub(crate) fn traced(&mut self) -> Vec<crate::qcow2::Event> {
        self.top().unwrap().take_trace()
    }
}
