//! The driver against a model, against every crash, and against hostile bytes.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::check::check;
use super::medium::Event;
use super::*;
use crate::{BlockBackend, ChainDisk, ChainError, Format};

fn empty() -> File {
    tempfile::tempfile().unwrap()
}

fn fresh(new: &NewImage<'_>) -> File {
    let file = empty();
    create(&file, new).unwrap();
    file
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = file.try_clone().unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A base of raw bytes, each sector its own number, `sectors` long.
fn base(sectors: u64) -> File {
    let file = empty();
    let bytes: Vec<u8> = (0..sectors).flat_map(|n| [n as u8 | 0x80; 512]).collect();
    file.write_all_at(&bytes, 0).unwrap();
    file
}

fn open(images: Vec<(&File, Format)>) -> ChainDisk {
    let images = images.into_iter().map(|(file, format)| (file.try_clone().unwrap(), format)).collect();
    ChainDisk::open(images, false).unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    Write { sector: u64, count: u64, value: u8 },
    Zeroes { sector: u64, count: u64, unmap: bool },
    Discard { sector: u64, count: u64 },
    Flush,
    Reopen,
}

const SECTORS: u64 = 300;

fn op() -> impl Strategy<Value = Op> {
    let place = || (0..SECTORS).prop_flat_map(|s| (Just(s), 1..=(SECTORS - s).min(40)));
    prop_oneof![
        6 => (place(), 1u8..128).prop_map(|((sector, count), value)| Op::Write { sector, count, value }),
        2 => (place(), any::<bool>()).prop_map(|((sector, count), unmap)| Op::Zeroes { sector, count, unmap }),
        1 => place().prop_map(|(sector, count)| Op::Discard { sector, count }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

/// A two-layer chain over a shorter raw base, and what it should hold.
struct World {
    images: Vec<(File, Format)>,
    disk: Option<ChainDisk>,
    model: Vec<u8>,
}

impl World {
    fn new(bits: u32, version: u32, order: u32) -> Self {
        let name = Some(("b", "qcow2"));
        let order = if version == 2 { 4 } else { order };
        let new = NewImage { size: SECTORS * 512, cluster_bits: bits, version, refcount_order: order, backing: name };
        let middle = NewImage { backing: Some(("c", "raw")), ..new.clone() };
        let images =
            vec![(fresh(&new), Format::Qcow2), (fresh(&middle), Format::Qcow2), (base(SECTORS / 2), Format::Raw)];
        let mut model = bytes_of(&images[2].0);
        model.resize((SECTORS * 512) as usize, 0);
        // The middle image gets content of its own, by the driver as its top.
        let mut disk = open(vec![(&images[1].0, Format::Qcow2), (&images[2].0, Format::Raw)]);
        disk.write_at(20 * 512, &[7; 1024]).unwrap();
        disk.write_zeroes(64 * 512, 8 * 512, true).unwrap();
        disk.close().unwrap();
        model[20 * 512..22 * 512].fill(7);
        model[64 * 512..72 * 512].fill(0);
        let mut world = Self { images, disk: None, model };
        world.reopen();
        world
    }

    fn reopen(&mut self) {
        if let Some(mut disk) = self.disk.take() {
            disk.close().unwrap();
        }
        self.disk = Some(open(self.images.iter().map(|(file, format)| (file, *format)).collect()));
    }

    /// Discarded ranges hold anything; the driver makes them zeroes or leaves them, the model asks which.
    fn apply(&mut self, op: &Op) {
        let disk = self.disk.as_mut().unwrap();
        let range = |sector: u64, count: u64| (sector * 512) as usize..((sector + count) * 512) as usize;
        match *op {
            Op::Write { sector, count, value } => {
                disk.write_at(sector * 512, &vec![value; (count * 512) as usize]).unwrap();
                self.model[range(sector, count)].fill(value);
            }
            Op::Zeroes { sector, count, unmap } => {
                disk.write_zeroes(sector * 512, count * 512, unmap).unwrap();
                self.model[range(sector, count)].fill(0);
            }
            Op::Discard { sector, count } => {
                disk.discard(sector * 512, count * 512).unwrap();
                let model = &mut self.model[range(sector, count)];
                let mut now = vec![0; model.len()];
                disk.read_at(sector * 512, &mut now).unwrap();
                assert!(now.iter().zip(model.iter()).all(|(now, was)| now == was || *now == 0));
                model.copy_from_slice(&now);
            }
            Op::Flush => disk.flush().unwrap(),
            Op::Reopen => self.reopen(),
        }
    }

    fn content(&mut self) -> Vec<u8> {
        let mut content = vec![0xee; self.model.len()];
        self.disk.as_mut().unwrap().read_at(0, &mut content).unwrap();
        content
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the guest does, the chain holds what an array would hold, and its top stays sound.
    #[test]
    fn svirt_18_a_chain_behaves_as_an_array(
        bits in 9u32..17,
        version in 2u32..4,
        order in 0u32..7,
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let mut world = World::new(bits, version, order);
        let below: Vec<_> = world.images[1..].iter().map(|(file, _)| bytes_of(file)).collect();
        for op in &ops {
            world.apply(op);
        }
        prop_assert!(world.content() == world.model);
        world.reopen();
        prop_assert!(world.content() == world.model);
        let verdict = check(&bytes_of(&world.images[0].0));
        prop_assert_eq!((verdict.errors, verdict.leaks), (Vec::new(), 0));
        let now: Vec<_> = world.images[1..].iter().map(|(file, _)| bytes_of(file)).collect();
        prop_assert!(below == now, "an image below the top was changed");
    }

    /// Hostile tables: no panic, no endless loop, no byte outside the file, whatever the guest then asks.
    #[test]
    fn damaged_images_are_refused_or_answer_with_errors(
        bits in 9u32..13,
        damage in proptest::collection::vec((0usize..1 << 16, any::<u8>()), 1..40),
        entries in proptest::collection::vec((0u64..600, any::<u64>(), any::<u16>()), 0..20),
        ops in proptest::collection::vec(op(), 1..20),
    ) {
        let mut world = World::new(bits, 3, 4);
        world.apply(&Op::Write { sector: 0, count: 40, value: 1 });
        world.reopen();
        let file = world.images[0].0.try_clone().unwrap();
        let len = file.metadata().unwrap().len();
        for (at, value) in damage {
            let at = 104 + at as u64 % (len - 104);
            file.write_all_at(&[value], at).unwrap();
        }
        for (at, flags, cluster) in entries {
            // Entries that look right: aligned, inside or a little outside the file.
            let entry = (flags & (7 << 61 | 1)) | u64::from(cluster % 64) << bits;
            file.write_all_at(&entry.to_be_bytes(), (1 << bits) + at * 8).unwrap();
        }
        let images = world.images.iter().map(|(file, format)| (file.try_clone().unwrap(), *format)).collect();
        if let Ok(mut disk) = ChainDisk::open(images, false) {
            let mut buf = vec![0; (40 * 512) as usize];
            for op in ops {
                let _ = match op {
                    Op::Write { sector, count, .. } => disk.write_at(sector * 512, &buf[..(count * 512) as usize]),
                    Op::Zeroes { sector, count, unmap } => disk.write_zeroes(sector * 512, count * 512, unmap),
                    Op::Discard { sector, count } => disk.discard(sector * 512, count * 512),
                    Op::Flush => disk.flush(),
                    Op::Reopen => disk.read_at(0, &mut buf),
                };
            }
            let _ = disk.close();
            prop_assert!(file.metadata().unwrap().len() < 64 << 20);
        }
    }
}

/// What a crash leaves: all writes before the `synced`-th event, then those of the rest that `lucky` picks.
fn after_crash(start: &[u8], events: &[Event], synced: usize, lucky: impl Fn(usize) -> Option<usize>) -> Vec<u8> {
    let mut image = start.to_vec();
    for (n, event) in events.iter().enumerate() {
        let Event::Write(at, bytes) = event else { continue };
        let take = if n < synced { Some(bytes.len()) } else { lucky(n) };
        let Some(take) = take else { continue };
        let bytes = &bytes[..take.min(bytes.len())];
        let end = *at as usize + bytes.len();
        image.resize(image.len().max(end), 0);
        image[*at as usize..end].copy_from_slice(bytes);
    }
    image
}

/// A workload that meets every kind of change, recorded.
fn recorded(bits: u32, order: u32) -> (Vec<u8>, Vec<Event>) {
    let new = NewImage { size: 1 << 20, cluster_bits: bits, refcount_order: order, ..NewImage::default() };
    let file = fresh(&new);
    let start = bytes_of(&file);
    let mut disk = open(vec![(&file, Format::Qcow2)]);
    disk.trace();
    let mut seed = 12345u64;
    for turn in 0..112 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (sector, count) = ((seed >> 33) % 1980, 1 + (seed >> 20) % 60);
        let (offset, len) = (sector * 512, count * 512);
        match turn % 7 {
            0 => disk.write_zeroes(offset, len, true).unwrap(),
            1 => disk.discard(offset, len).unwrap(),
            6 => disk.flush().unwrap(),
            _ => disk.write_at(offset, &vec![turn as u8 + 1; len as usize]).unwrap(),
        }
    }
    disk.close().unwrap();
    (start, disk.traced())
}

#[test]
fn svirt_18_a_kill_at_any_write_leaves_no_error() {
    for (bits, order) in [(9, 4), (10, 6), (12, 0), (14, 4)] {
        let (start, events) = recorded(bits, order);
        let writes = events.iter().filter(|event| matches!(event, Event::Write(..))).count();
        assert!(writes > 50, "{writes}");
        for n in 0..=events.len() {
            // All before it, and half of it.
            let half = match events.get(n) {
                Some(Event::Write(_, bytes)) => bytes.len() / 2 / 8 * 8,
                _ => 0,
            };
            let image = after_crash(&start, &events, n, |m| (m == n).then_some(half));
            let verdict = check(&image);
            assert!(verdict.errors.is_empty(), "{bits} {n}: {:?}", verdict.errors);
        }
        let done = after_crash(&start, &events, events.len(), |_| None);
        assert_eq!(check(&done), check::Verdict::default());
    }
}

#[test]
fn svirt_18_a_power_cut_leaves_no_error() {
    for (bits, order) in [(9, 4), (12, 5), (14, 4)] {
        let (start, events) = recorded(bits, order);
        let syncs: Vec<usize> =
            events.iter().enumerate().filter(|(_, e)| matches!(e, Event::Sync)).map(|(n, _)| n).collect();
        assert!(syncs.len() > 20);
        let mut seed = 99u64;
        for (n, sync) in syncs.iter().enumerate() {
            let next = syncs.get(n + 1).copied().unwrap_or(events.len());
            for _ in 0..6 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                // Of what was not yet stable, any part may have reached the disk.
                let lucky = |m: usize| (m < next && (seed >> (m % 61)) & 1 == 1).then_some(usize::MAX);
                let verdict = check(&after_crash(&start, &events, *sync, lucky));
                assert!(verdict.errors.is_empty(), "{bits} {sync}: {:?}", verdict.errors);
            }
        }
    }
}

#[test]
fn svirt_18_headers_and_declaration_must_agree() {
    let over = |backing| fresh(&NewImage { size: 1 << 20, backing, ..NewImage::default() });
    let refused = |images: Vec<(File, Format)>| ChainDisk::open(images, true).unwrap_err();
    let named = || over(Some(("/srv/base.raw", "raw")));
    let error = refused(vec![(named(), Format::Qcow2)]);
    assert!(matches!(&error, ChainError::Undeclared { image: 0, name } if name == "/srv/base.raw"), "{error}");
    let error = refused(vec![(over(None), Format::Qcow2), (base(8), Format::Raw)]);
    assert!(matches!(error, ChainError::NoBacking { image: 0 }));
    let error = refused(vec![(named(), Format::Qcow2), (over(None), Format::Qcow2)]);
    assert!(matches!(error, ChainError::BackingFormat { image: 0, .. }), "{error}");
    let error = refused(vec![(named(), Format::Qcow2), (base(8), Format::Raw), (base(8), Format::Raw)]);
    assert!(matches!(error, ChainError::BelowRaw { image: 1 }));
    let many = (0..17).map(|_| (named(), Format::Qcow2)).collect();
    assert!(matches!(refused(many), ChainError::Length(17)));
    let mut disk = ChainDisk::open(vec![(named(), Format::Qcow2), (base(8), Format::Raw)], true).unwrap();
    assert!(disk.write_at(0, &[0; 512]).is_err());
    let mut sector = [0; 1024];
    disk.read_at(7 * 512, &mut sector).unwrap();
    assert!(sector[..512] == [0x87; 512] && sector[512..] == [0; 512], "past the end of a base are zeroes");
}

#[test]
fn svirt_18_a_guest_that_writes_a_header_into_its_base_gains_nothing() {
    // A raw base with a qcow2 header in it is bytes, whatever they say.
    let bait = fresh(&NewImage { size: 1 << 20, backing: Some(("/etc/shadow", "raw")), ..NewImage::default() });
    let top = fresh(&NewImage { size: 1 << 20, backing: Some(("b", "raw")), ..NewImage::default() });
    let mut disk = open(vec![(&top, Format::Qcow2), (&bait, Format::Raw)]);
    let mut bytes = vec![0; 4096];
    disk.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, bytes_of(&bait)[..4096]);
}

#[test]
fn tables_are_never_a_guests_to_write() {
    let file = fresh(&NewImage { size: 1 << 20, ..NewImage::default() });
    let mut disk = open(vec![(&file, Format::Qcow2)]);
    disk.write_at(0, &[1; 512]).unwrap();
    disk.close().unwrap();
    let header = Header::read(&file).unwrap();
    let mut l2 = [0; 8];
    file.read_exact_at(&mut l2, header.l1_offset).unwrap();
    let l2 = u64::from_be_bytes(l2) & !(1 << 63);
    for (target, version3) in [(header.l1_offset, true), (header.refcount_table, true), (l2, true)] {
        let copy = empty();
        copy.write_all_at(&bytes_of(&file), 0).unwrap();
        copy.write_all_at(&(target | 1 << 63).to_be_bytes(), l2).unwrap();
        let mut disk = open(vec![(&copy, Format::Qcow2)]);
        assert!(disk.write_at(0, &[0xff; 512]).is_err());
        assert!(disk.write_at(1 << 19, &[0xff; 512]).is_err(), "nothing is written any more");
        assert_eq!(bytes_of(&copy)[target as usize..][..8], {
            let mut was = bytes_of(&file)[target as usize..][..8].to_vec();
            if target == l2 {
                was = (target | 1 << 63).to_be_bytes().to_vec();
            }
            was
        });
        drop(disk);
        let error = Header::read(&copy).unwrap_err().to_string();
        assert!(version3 && error.contains("corrupt"), "{error}");
    }
}

#[test]
fn what_cannot_be_kept_right_is_refused_for_writing_and_read_where_that_is_safe() {
    let changed = |at: u64, bytes: &[u8]| {
        let file = fresh(&NewImage { size: 1 << 20, ..NewImage::default() });
        file.write_all_at(bytes, at).unwrap();
        file
    };
    let open = |file: File, read_only| ChainDisk::open(vec![(file, Format::Qcow2)], read_only);
    let text = |error: ChainError| std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    // (place, bytes, said, still readable)
    let cases: [(u64, &[u8], &str, bool); 9] = [
        (63, &[1], "internal snapshots", true),
        (79, &[1], "not closed", true),
        (79, &[2], "marked corrupt", false),
        (79, &[4], "another file", false),
        (79, &[8], "zstd", false),
        (79, &[16], "subclusters", false),
        (79, &[32], "does not know", false),
        (35, &[1], "encrypted", false),
        (104, &[0x23, 0x85, 0x28, 0x75], "bitmaps", true),
    ];
    for (at, bytes, said, readable) in cases {
        let error = text(open(changed(at, bytes), false).unwrap_err());
        assert!(error.contains(said), "{said}: {error}");
        assert_eq!(open(changed(at, bytes), true).is_ok(), readable, "{said}");
    }
}

#[test]
fn a_truncated_image_is_an_error_and_not_zeroes() {
    let file = fresh(&NewImage { size: 1 << 20, ..NewImage::default() });
    let mut disk = open(vec![(&file, Format::Qcow2)]);
    disk.write_at(0, &vec![1; 256 << 10]).unwrap();
    disk.close().unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - (64 << 10)).unwrap();
    assert!(disk.read_at(192 << 10, &mut [0; 512]).is_err(), "while it is open");
    let mut disk = open(vec![(&file, Format::Qcow2)]);
    assert!(disk.read_at(192 << 10, &mut [0; 512]).is_err(), "and afterwards");
    disk.read_at(128 << 10, &mut [0; 512]).unwrap();
}

#[test]
fn a_writable_top_needs_a_writable_descriptor() {
    let named = tempfile::NamedTempFile::new().unwrap();
    create(named.as_file(), &NewImage { size: 1 << 20, ..NewImage::default() }).unwrap();
    let read_only = || vec![(File::open(named.path()).unwrap(), Format::Qcow2)];
    assert!(ChainDisk::open(read_only(), false).is_err());
    assert!(ChainDisk::open(read_only(), true).is_ok());
}
