//! Changes to the top image of a chain. Whoever calls has checked that the image is writable and the range inside.

use std::io::{self, ErrorKind};

use super::image::{COPIED, Extent, Image, Writer, ZERO};
use super::refcounts::Grown;

/// References that wait to be given up, at most, before the tables are written.
const RELEASED_MAX: usize = 4096;

/// What becomes of a whole cluster that shall read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emptied {
    Done,
    /// Version 2 has no such mark: zeroes must be written.
    NotPossible,
}

impl Image {
    /// Before each piece of work: the image still takes changes, and the caches have room for what it may touch.
    pub fn make_room(&mut self) -> io::Result<()> {
        let crowded_l2 = self.l2.crowded();
        let writer = self.writer()?;
        if crowded_l2 || writer.refcounts.pages.crowded() || writer.released.len() > RELEASED_MAX {
            self.flush()?;
        }
        Ok(())
    }

    fn writer(&mut self) -> io::Result<&mut Writer> {
        let writer = self.writer.as_mut().ok_or(ErrorKind::ReadOnlyFilesystem)?;
        if writer.failed { Err(io::Error::other("an earlier failure made this image read-only")) } else { Ok(writer) }
    }

    pub fn cluster_size(&self) -> u64 {
        self.cluster()
    }

    /// A buffer of one cluster; given back with [`Self::give_buffer`].
    pub fn take_buffer(&mut self) -> io::Result<Vec<u8>> {
        let cluster = self.cluster() as usize;
        let mut buffer = std::mem::take(&mut self.writer()?.buffer);
        buffer.resize(cluster, 0);
        Ok(buffer)
    }

    pub fn give_buffer(&mut self, buffer: Vec<u8>) {
        if let Some(writer) = &mut self.writer {
            writer.buffer = buffer;
        }
    }

    /// Writes inside clusters that are this image's own already. `guest` is for the refcount's sake only.
    pub fn write_in_place(&mut self, guest: u64, host: u64, copied: bool, bytes: &[u8]) -> io::Result<()> {
        let bits = self.header.cluster_bits;
        let clusters = (host >> bits)..=((host + bytes.len() as u64 - 1) >> bits);
        let writer = self.writer()?;
        if clusters.clone().any(|cluster| writer.tables.contains(&cluster)) {
            return Err(self.corrupt());
        }
        if !copied {
            let first = *clusters.start();
            for cluster in clusters {
                self.own(cluster)?;
                self.set_entry((guest >> bits) + (cluster - first), (cluster << bits) | COPIED)?;
            }
        }
        self.medium.write(host, bytes)
    }

    /// Without snapshots a cluster has one user, whatever the flag says.
    fn own(&mut self, cluster: u64) -> io::Result<()> {
        let Self { medium, writer, .. } = self;
        let writer = writer.as_mut().ok_or(ErrorKind::ReadOnlyFilesystem)?;
        if writer.refcounts.get(medium, cluster)? == 1 { Ok(()) } else { Err(self.corrupt()) }
    }

    /// Puts a whole cluster's bytes where `was` stood.
    pub fn write_cluster(&mut self, guest_cluster: u64, was: Extent, bytes: &[u8]) -> io::Result<()> {
        let bits = self.header.cluster_bits;
        let (host, fresh) = match was {
            Extent::Zero { host: Some(host), copied } => {
                if self.writer()?.tables.contains(&(host >> bits)) {
                    return Err(self.corrupt());
                }
                if !copied {
                    self.own(host >> bits)?;
                }
                (host, false)
            }
            _ => (self.allocate()? << bits, true),
        };
        let done = self.medium.write(host, bytes).and_then(|()| self.set_entry(guest_cluster, host | COPIED));
        if done.is_err() && fresh {
            // Nothing points at it: it is free again at once. If even that fails it is a leak.
            let Self { medium, writer, .. } = self;
            if let Some(writer) = writer {
                let _leak = writer.refcounts.set(medium, host >> bits, 0);
            }
        }
        done?;
        self.drop_compressed(was)
    }

    fn allocate(&mut self) -> io::Result<u64> {
        let mut grown = Grown::default();
        let Self { medium, writer, .. } = self;
        let writer = writer.as_mut().ok_or(ErrorKind::ReadOnlyFilesystem)?;
        let found = writer.refcounts.allocate(medium, &mut grown);
        let overlap = grown.tables.iter().any(|cluster| !writer.tables.insert(*cluster));
        writer.tables.retain(|cluster| !grown.released.contains(cluster));
        writer.released.extend(grown.released);
        let found = found?;
        // A refcount of 0 for a table: the image is damaged.
        if overlap || writer.tables.contains(&found) { Err(self.corrupt()) } else { Ok(found) }
    }

    /// Changes the L2 entry of a guest cluster; makes the L2 table if there is none.
    fn set_entry(&mut self, guest_cluster: u64, entry: u64) -> io::Result<()> {
        let (l1_index, at) = self.l2_place(guest_cluster);
        let table = match self.l2_table(l1_index) {
            Some(table) => table,
            None => self.new_l2(l1_index)?,
        };
        let page_size = self.l2.size() as u64;
        let page = self.l2.change(&self.medium, table + at / page_size * page_size)?;
        page[(at % page_size) as usize..][..8].copy_from_slice(&entry.to_be_bytes());
        Ok(())
    }

    /// The table is in the file, empty, before the L1 table can point at it.
    fn new_l2(&mut self, l1_index: usize) -> io::Result<u64> {
        let cluster = self.allocate()?;
        let at = cluster << self.header.cluster_bits;
        self.medium.write_zeroes(at, self.cluster())?;
        let entry = self.l1.get_mut(l1_index).ok_or(ErrorKind::InvalidInput)?;
        *entry = at | COPIED;
        let writer = self.writer()?;
        writer.tables.insert(cluster);
        writer.l1_changed.insert(l1_index);
        Ok(at)
    }

    /// Makes a whole guest cluster read as zeroes; a cluster it has in the file stays its own.
    pub fn empty_cluster(&mut self, guest_cluster: u64, was: Extent, unmap: bool) -> io::Result<Emptied> {
        let host = match was {
            Extent::Zero { .. } => return Ok(Emptied::Done),
            _ if self.header.version == 2 => return Ok(Emptied::NotPossible),
            Extent::Data { host, copied } => {
                let cluster = host >> self.header.cluster_bits;
                if self.writer()?.tables.contains(&cluster) {
                    return Err(self.corrupt());
                }
                if !copied {
                    self.own(cluster)?;
                }
                Some(host)
            }
            Extent::Hole | Extent::Compressed { .. } => None,
        };
        self.set_entry(guest_cluster, host.map_or(0, |host| host | COPIED) | ZERO)?;
        if let (Some(host), true) = (host, unmap) {
            self.medium.punch(host, self.cluster())?;
        }
        self.drop_compressed(was)?;
        Ok(Emptied::Done)
    }

    /// Gives back the space of a cluster whose content no longer matters and whose entry stays.
    pub fn punch(&mut self, host: u64) -> io::Result<()> {
        let cluster = host >> self.header.cluster_bits;
        if self.writer()?.tables.contains(&cluster) {
            return Err(self.corrupt());
        }
        self.medium.punch(host, self.cluster())
    }

    fn drop_compressed(&mut self, was: Extent) -> io::Result<()> {
        let Extent::Compressed { host, len } = was else { return Ok(()) };
        let bits = self.header.cluster_bits;
        self.writer()?.released.extend((host >> bits)..=((host + len as u64 - 1) >> bits));
        self.forget_inflated();
        Ok(())
    }

    /// Writes all tables in the order that keeps the image sound, and waits until everything is stable.
    pub fn flush(&mut self) -> io::Result<()> {
        let flushed = self.write_tables();
        if flushed.is_err()
            && let Some(writer) = &mut self.writer
        {
            // What the kernel lost once it calls clean the next time (fsync(2)): memory and file are apart.
            writer.failed = true;
        }
        flushed
    }

    fn write_tables(&mut self) -> io::Result<()> {
        self.writer()?;
        let Self { medium, writer, l1, l2, header, .. } = self;
        let writer = writer.as_mut().ok_or(ErrorKind::ReadOnlyFilesystem)?;
        writer.refcounts.pages.write_back(medium)?;
        medium.sync()?;
        if l2.is_dirty() {
            l2.write_back(medium)?;
            medium.sync()?;
        }
        if !writer.l1_changed.is_empty() {
            for index in &writer.l1_changed {
                medium.write(header.l1_offset + *index as u64 * 8, &l1[*index].to_be_bytes())?;
            }
            medium.sync()?;
            writer.l1_changed.clear();
        }
        for cluster in std::mem::take(&mut writer.released) {
            if writer.refcounts.pages.crowded() {
                writer.refcounts.pages.write_back(medium)?;
            }
            let count = writer.refcounts.get(medium, cluster)?;
            // Refcounts that fall are written with the next flush; nothing stable needs them any more.
            match count.checked_sub(1) {
                Some(less) => writer.refcounts.set(medium, cluster, less)?,
                None => return Err(self.corrupt()),
            }
        }
        Ok(())
    }

    /// The last flush: refcounts that fell go to the file too.
    pub fn close(&mut self) -> io::Result<()> {
        if self.writer.is_none() {
            return Ok(());
        }
        self.flush()?;
        if self.writer.as_ref().is_some_and(|writer| writer.refcounts.pages.is_dirty()) { self.flush() } else { Ok(()) }
    }
}
