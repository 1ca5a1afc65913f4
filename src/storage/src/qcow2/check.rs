//! A second reader of the format for the tests, as `qemu-img check` is: counts every reference and compares.

use std::collections::HashMap;

/// What is wrong: errors, which lose data, and leaks, which lose space.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub errors: Vec<String>,
    pub leaks: usize,
}

/// Judges the bytes of an image without snapshots.
pub fn check(image: &[u8]) -> Verdict {
    let mut verdict = Verdict::default();
    let word = |at: usize| u32::from_be_bytes(image[at..at + 4].try_into().unwrap());
    let long = |at: usize| image.get(at..at + 8).map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()));
    let version = word(4);
    let bits = word(20);
    let order = if version == 3 { word(96) } else { 4 };
    let cluster = 1u64 << bits;
    let clusters = (image.len() as u64).div_ceil(cluster);
    let mut uses: HashMap<u64, u64> = HashMap::new();
    let mut errors = Vec::new();
    let mut copied = Vec::new();
    let mut add = |at: u64, bytes: u64, what: &str, errors: &mut Vec<String>| {
        if bytes == 0 {
            return;
        }
        for n in at / cluster..=(at + bytes - 1) / cluster {
            *uses.entry(n).or_default() += 1;
            if n >= clusters {
                errors.push(format!("{what} past the end: {at:#x}"));
            }
        }
    };
    add(0, 1, "header", &mut errors);
    let (l1_at, l1_entries) = (long(40), u64::from(word(36)));
    add(l1_at, l1_entries * 8, "L1", &mut errors);
    let (table_at, table) = (long(48), u64::from(word(56)));
    add(table_at, table * cluster, "refcount table", &mut errors);
    let mut blocks = HashMap::new();
    for n in 0..table * cluster / 8 {
        let at = long((table_at + n * 8) as usize);
        if at != 0 {
            add(at, cluster, "refcount block", &mut errors);
            blocks.insert(n, at);
        }
    }
    for n in 0..l1_entries {
        let entry = long((l1_at + n * 8) as usize);
        let l2 = entry & 0x00ff_ffff_ffff_fe00;
        if l2 == 0 {
            continue;
        }
        add(l2, cluster, "L2 table", &mut errors);
        copied.push((l2, entry >> 63 == 1));
        for m in 0..cluster / 8 {
            let entry = long((l2 + m * 8) as usize);
            if entry & (1 << 62) != 0 {
                let x = 62 - (bits - 8);
                let at = entry & ((1 << x) - 1);
                let sectors = ((entry & ((1 << 62) - 1)) >> x) + 1;
                add(at, sectors * 512 - at % 512, "compressed cluster", &mut errors);
            } else if entry & 0x00ff_ffff_ffff_fe00 != 0 {
                let at = entry & 0x00ff_ffff_ffff_fe00;
                add(at, cluster, "cluster", &mut errors);
                copied.push((at, entry >> 63 == 1));
            }
        }
    }
    let per_block = (cluster * 8) >> order;
    let width = 1u64 << order;
    let counted = |n: u64| {
        let Some(block) = blocks.get(&(n / per_block)) else { return 0 };
        let bit = n % per_block * width;
        let at = (block + bit / 8) as usize;
        if width < 8 {
            return u64::from(image.get(at).copied().unwrap_or(0)) >> (bit % 8) & ((1 << width) - 1);
        }
        image[at..].iter().take((width / 8) as usize).fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let last = clusters.max(uses.keys().copied().max().unwrap_or(0) + 1);
    for n in 0..last {
        let (counted, used) = (counted(n), uses.get(&n).copied().unwrap_or(0));
        if counted < used {
            errors.push(format!("cluster {n} has {used} uses and a refcount of {counted}"));
        } else if counted > used {
            verdict.leaks += 1;
        }
    }
    for (at, flag) in copied {
        if flag != (counted(at / cluster) == 1) {
            errors.push(format!("COPIED is wrong for {at:#x}"));
        }
    }
    verdict.errors = errors;
    verdict
}
