//! Feature bits and configuration space of virtio-blk (virtio 1.2, 5.2.3 and 5.2.4).

use super::QUEUE_SIZE;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
pub const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// A segment's most bytes and a request's most segments; their product bounds a request.
const SIZE_MAX: u32 = 128 << 10;
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Data of one request, at most; a driver that keeps to the two above never reaches it.
pub const REQUEST_MAX: u64 = SIZE_MAX as u64 * SEG_MAX as u64;
/// Ranges in one discard or write-zeroes request.
pub const RANGES_MAX: u32 = 16;
/// Sectors in one range. Zeroes may have to be written by hand, so that range is shorter.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
pub const ZEROES_SECTORS_MAX: u32 = 1 << 15;

pub const LEN: usize = 60;

pub fn features(read_only: bool) -> u64 {
    let common = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
    common | if read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
}

pub fn config_space(sectors: u64) -> [u8; LEN] {
    let mut c = [0; LEN];
    c[0..8].copy_from_slice(&sectors.to_le_bytes());
    let words = [
        (8, SIZE_MAX),
        (12, SEG_MAX),
        (20, 512),
        (36, DISCARD_SECTORS_MAX),
        (40, RANGES_MAX),
        (44, 8),
        (48, ZEROES_SECTORS_MAX),
        (52, RANGES_MAX),
    ];
    for (at, value) in words {
        c[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    // write_zeroes_may_unmap
    c[56] = 1;
    c
}
