//! Bytes that are no sound policy: errors, never a crash of ours, never an answer of a policy that libsepol did not survive.

use super::*;

/// A small generator of the same numbers each time (Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// A flipped bit, a byte of all ones or zeroes, several of them nearby, or a cut.
fn damaged(image: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut image = image.to_vec();
    let at = numbers.below(image.len());
    match numbers.below(4) {
        0 => image[at] ^= 1 << numbers.below(8),
        1 => image[at] = [0, 0xff][numbers.below(2)],
        2 => {
            for _ in 0..8 {
                let near = (at + numbers.below(64)) % image.len();
                image[near] ^= 1 << numbers.below(8);
            }
        }
        _ => image.truncate(at),
    }
    image
}

#[test]
fn damaged_policies_are_refused_or_answer_and_the_auditor_lives() {
    let sound = compiled(&[], &[]);
    let mut numbers = Numbers(7);
    let (mut read, mut refused, mut crashed) = (0, 0, 0);
    for round in 0..400 {
        let image = damaged(&sound, &mut numbers);
        match Policy::from_image(image, format!("round {round}")) {
            Ok(_) => read += 1,
            Err(PolicyError::Crashes { .. }) => crashed += 1,
            Err(PolicyError::NotTried { origin, why }) => panic!("{origin}: {why}"),
            Err(_) => refused += 1,
        }
    }
    println!("{read} read, {refused} refused, {crashed} that libsepol did not survive");
    assert!(read > 20 && refused > 200, "{read} read, {refused} refused: the damage is not of the kind that was meant");
}

#[test]
fn the_cause_that_libsepol_names_is_told() {
    // The number of its tables, after magic, target, version and flags.
    let mut image = compiled(&[], &[]);
    image[24] = 99;
    let error = Policy::from_image(image, "other tables".into()).unwrap_err();
    let PolicyError::Malformed { why, .. } = &error else { panic!("{error}") };
    assert!(why.contains("table sizes") && error.to_string().contains(why.as_str()), "{error}");
    let crashed = PolicyError::Crashes { origin: "p".into(), how: "killed by signal 11".into() };
    assert!(crashed.to_string().contains("did not survive"));
}
