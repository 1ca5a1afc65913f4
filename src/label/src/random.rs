//! Uniform numbers from the kernel.

/// Uniform below `n`, which is not 0, by rejection.
pub(crate) fn below(n: u32) -> u32 {
    let limit = u32::MAX - u32::MAX % n;
    loop {
        let mut bytes = [0; 4];
        // getrandom gives up to 256 bytes whole once the pool is initialised
        if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(4) {
            continue;
        }
        let value = u32::from_ne_bytes(bytes);
        if value < limit {
            return value % n;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn svirt_07_random_numbers_cover_the_window_evenly() {
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            counts[super::below(10) as usize] += 1;
        }
        assert!(counts.iter().all(|n| (800..1200).contains(n)), "{counts:?}");
    }
}
