use proptest::prelude::*;

use super::*;
use crate::qcow2::{NewImage, create};

fn image(new: &NewImage<'_>) -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    create(&file, new).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

const NEW: NewImage<'static> =
    NewImage { size: 1 << 30, cluster_bits: 16, version: 3, refcount_order: 4, backing: Some(("base.raw", "raw")) };

#[test]
fn names_and_formats_are_read_in_both_versions() {
    for version in [2, 3] {
        let header = Header::parse(&image(&NewImage { version, ..NEW })).unwrap();
        assert_eq!(header.backing.as_deref(), Some("base.raw"));
        assert_eq!(header.backing_format.as_deref(), Some("raw"));
        assert_eq!((header.version, header.size, header.l1_needed()), (version, 1 << 30, 2));
    }
    let header = Header::parse(&image(&NewImage { backing: None, ..NEW })).unwrap();
    assert_eq!((header.backing, header.backing_format), (None, None));
}

#[test]
fn impossible_numbers_are_refused() {
    let good = image(&NEW);
    // (place, bytes): each alone makes the header impossible.
    let cases: [(usize, &[u8]); 16] = [
        (0, b"RAW "),
        (4, &[0, 0, 0, 4]),
        (20, &[0, 0, 0, 8]),
        (20, &[0, 0, 0, 22]),
        (8, &[0xff; 8]),
        (16, &[0xff; 4]),
        (24, &[0xff; 8]),
        (24, &[0; 8]),
        (31, &[1]),
        (36, &[0; 4]),
        (36, &[0xff; 4]),
        (40, &[0; 8]),
        (48, &[0, 0, 0, 0, 0, 0, 2, 0]),
        (56, &[0, 0, 1, 0]),
        (96, &[0, 0, 0, 7]),
        (100, &[0xff; 4]),
    ];
    for (at, bytes) in cases {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(Header::parse(&bad).is_err(), "{at} {bytes:?}");
    }
    // Clusters of 512 bytes would need an L1 table of 256 MiB for a disk of 1 TiB.
    let mut bad = good.clone();
    bad[20..24].copy_from_slice(&9u32.to_be_bytes());
    assert!(Header::parse(&bad).is_err());
    for length in [0, 4, 71, 103] {
        assert!(Header::parse(&good[..length]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_bytes_panic(
        changes in proptest::collection::vec((0usize..300, any::<u8>()), 0..12),
        cut in prop_oneof![Just(1usize << 20), 0usize..400],
    ) {
        let mut bytes = image(&NewImage { cluster_bits: 9, size: 1 << 20, ..NEW });
        for (at, value) in changes {
            bytes[at] = value;
        }
        let _ = Header::parse(&bytes[..cut.min(bytes.len())]);
    }
}
