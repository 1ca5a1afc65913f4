//! Chains of images: a guest on a qcow2 overlay, headers that lie, and the same images in QEMU's hands.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_spec::DiskFormat;
use casemate_storage::qcow2::{NewImage, create};
use casemate_storage::{BlockBackend, ChainDisk, Format};
use casemate_tests::guest;
use casemate_tests::rig::Rig;
use casemate_tests::virtio::{self, WRITE};
use libtest_mimic::{Failed, Trial};

use crate::hostile::{self, DISK, check};
use crate::hostile_devices::{DATA, request};

const SIZE: u64 = 1 << 20;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("svirt_18: {name}"), run);
    vec![
        trial("a guest writes its overlay and reads its base", overlay),
        trial("a header that says otherwise than the plan ends the start", lying_headers),
    ]
}

/// These need qemu-img and qemu-io (Debian: qemu-utils) and neither root nor KVM.
pub fn with_qemu() -> Vec<Trial> {
    let missing = Command::new("qemu-io").arg("--version").output().is_err();
    if missing {
        eprintln!("interoperation with QEMU skipped: qemu-io is not installed (qemu-utils)");
    }
    [
        ("QEMU and Casemate write one chain in turns", in_turns as fn() -> Result<(), Failed>),
        ("images of every kind that qemu-img makes are read", every_kind),
    ]
    .map(|(name, run)| Trial::test(format!("svirt_18: {name}"), run).with_ignored_flag(missing))
    .into()
}

fn open(path: &Path, write: bool) -> Result<File, Failed> {
    Ok(File::options().read(true).write(write).open(path)?)
}

fn image(path: &Path, new: &NewImage<'_>) -> Result<(), Failed> {
    Ok(create(&File::options().write(true).create_new(true).open(path)?, new)?)
}

fn qemu(program: &str, arguments: &[&str]) -> Result<String, Failed> {
    let output = Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), format!("{program} {arguments:?}: {said}{error}"))?;
    Ok(said)
}

/// Neither errors nor leaks, in QEMU's eyes, where it is installed.
fn sound(path: &Path) -> Result<(), Failed> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return Ok(());
    }
    let said = qemu("qemu-img", &["check", "-f", "qcow2", &path.to_string_lossy()])?;
    check(said.contains("No errors were found"), said)
}

/// `base.img` with sector numbers, and `top.qcow2` over it.
fn pair(dir: &Path) -> Result<(PathBuf, PathBuf), Failed> {
    let (base, top) = (dir.join("base.img"), dir.join("top.qcow2"));
    let bytes: Vec<u8> = (0..SIZE / 512).flat_map(|n| [(n % 10) as u8; 512]).collect();
    std::fs::write(&base, bytes)?;
    image(&top, &NewImage { size: SIZE, backing: Some(("base.img", "raw")), ..NewImage::default() })?;
    Ok((base, top))
}

fn overlay() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let (base, top) = pair(dir.path())?;
    let before = std::fs::read(&base)?;
    let elf = guest::pvh_elf(|a| {
        virtio::start(a, DISK, 1)?;
        // Sector 7 is the base's; then a write over sector 5, read back; then zeroes over sector 3.
        request(a, 0, 7, (512, WRITE), 0)?;
        virtio::print_digit(a, DATA as u32)?;
        guest::store32(a, DATA as u32, 0x0909_0909)?;
        request(a, 1, 5, (512, 0), 1)?;
        request(a, 0, 5, (512, WRITE), 2)?;
        virtio::print_digit(a, DATA as u32)?;
        guest::store64(a, DATA as u32, 3)?;
        guest::store32(a, DATA as u32 + 8, 1)?;
        guest::store32(a, DATA as u32 + 12, 0)?;
        request(a, 13, 0, (16, 0), 3)?;
        // No flush: the runner closes the image when the guest is gone.
        guest::power_off(a)
    });
    let images = vec![(open(&top, true)?, DiskFormat::Qcow2), (open(&base, false)?, DiskFormat::Raw)];
    let rig = Rig::new(elf).chain("root", images, false).vsock()?;
    let mut vm = rig.with(|vm| (vm.console, vm.rng) = (true, true)).start()?;
    hostile::run(&mut vm)?;
    let seen = String::from_utf8_lossy(&vm.console()?).into_owned();
    check(seen == "U07U0U09U0", format!("the guest shows {seen:?}"))?;
    check(std::fs::read(&base)? == before, "the base changed")?;
    sound(&top)?;
    let images = vec![(open(&top, false)?, Format::Qcow2), (open(&base, false)?, Format::Raw)];
    let mut disk = ChainDisk::open(images, true)?;
    let mut content = vec![0; SIZE as usize];
    disk.read_at(0, &mut content)?;
    let mut expected = before;
    expected[5 * 512..][..4].fill(9);
    expected[5 * 512 + 4..6 * 512].fill(content[5 * 512 + 4]);
    expected[3 * 512..4 * 512].fill(0);
    check(content == expected, "the overlay holds something else than the guest wrote")
}

fn lying_headers() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let (base, top) = pair(dir.path())?;
    let alone = dir.path().join("alone.qcow2");
    image(&alone, &NewImage { size: SIZE, ..NewImage::default() })?;
    let q = DiskFormat::Qcow2;
    let cases = [
        (vec![(open(&top, true)?, q)], "no further image is declared"),
        (vec![(open(&alone, true)?, q), (open(&base, false)?, DiskFormat::Raw)], "has no backing file"),
        (vec![(open(&top, true)?, q), (open(&alone, false)?, q)], "says that its backing file is raw"),
        (vec![(open(&base, true)?, q)], "no qcow2 image"),
    ];
    for (images, said) in cases {
        let failed = Rig::new(guest::pvh_elf(guest::power_off)).chain("root", images, false).start_failing()?;
        check(failed.contains(said) && failed.contains("disk 'root'"), format!("{failed:?} lacks {said:?}"))?;
    }
    // The same images, declared rightly.
    let images = vec![(open(&top, true)?, q), (open(&base, false)?, DiskFormat::Raw)];
    let mut vm = Rig::new(guest::pvh_elf(guest::power_off)).chain("root", images, false).start()?;
    vm.run_to_end().map(drop)
}

/// A small generator, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }
}

fn in_turns() -> Result<(), Failed> {
    for (seed, bits, version, order) in [(1, 16, 3, 4), (2, 9, 3, 4), (3, 12, 2, 4), (4, 10, 3, 0), (5, 14, 3, 6)] {
        let dir = tempfile::tempdir()?;
        let place = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let (base, mid, top, flat) = (place("base.img"), place("mid"), place("top"), place("flat"));
        let mut model: Vec<u8> = (0..SIZE / 2).map(|n| (n / 512 % 251) as u8).collect();
        std::fs::write(&base, &model)?;
        model.resize(SIZE as usize, 0);
        // The middle is QEMU's, the top ours.
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &mid, "1M"])?;
        let new = NewImage {
            size: SIZE,
            cluster_bits: bits,
            version,
            refcount_order: order,
            backing: Some(("mid", "qcow2")),
        };
        image(Path::new(&top), &new)?;
        let mut dice = Dice(seed);
        for turn in 0..8 {
            if turn % 2 == 0 {
                ours(&[&top, &mid, &base], &mut dice, &mut model)?;
            } else {
                theirs(&top, &mut dice, &mut model)?;
            }
            sound(Path::new(&top))?;
            qemu("qemu-img", &["convert", "-O", "raw", &top, &flat])?;
            check(std::fs::read(&flat)? == model, format!("seed {seed}, turn {turn}: QEMU reads something else"))?;
            check(
                read_all(&[&top, &mid, &base])? == model,
                format!("seed {seed}, turn {turn}: we read something else"),
            )?;
        }
        check(
            std::fs::read(&base)?[..] == (0..SIZE / 2).map(|n| (n / 512 % 251) as u8).collect::<Vec<_>>(),
            "the base changed",
        )?;
    }
    Ok(())
}

fn chain(paths: &[&str], write: bool) -> Result<ChainDisk, Failed> {
    let images = paths.iter().enumerate().map(|(n, path)| {
        let format = if path.ends_with(".img") { Format::Raw } else { Format::Qcow2 };
        Ok((open(Path::new(path), write && n == 0)?, format))
    });
    Ok(ChainDisk::open(images.collect::<Result<_, Failed>>()?, !write)?)
}

fn read_all(paths: &[&str]) -> Result<Vec<u8>, Failed> {
    let mut disk = chain(paths, false)?;
    let mut content = vec![0; disk.size() as usize];
    disk.read_at(0, &mut content)?;
    Ok(content)
}

fn ours(paths: &[&str], dice: &mut Dice, model: &mut [u8]) -> Result<(), Failed> {
    let mut disk = chain(paths, true)?;
    for _ in 0..40 {
        let at = dice.roll(SIZE / 512);
        let len = (1 + dice.roll(100)).min(SIZE / 512 - at) * 512;
        let (at, range) = (at * 512, at as usize * 512..(at * 512 + len) as usize);
        match dice.roll(4) {
            0 => {
                disk.write_zeroes(at, len, true)?;
                model[range].fill(0);
            }
            _ => {
                let value = dice.roll(256) as u8;
                disk.write_at(at, &vec![value; len as usize])?;
                model[range].fill(value);
            }
        }
    }
    Ok(disk.close()?)
}

fn theirs(top: &str, dice: &mut Dice, model: &mut [u8]) -> Result<(), Failed> {
    let mut arguments = vec!["-f".into(), "qcow2".into()];
    for _ in 0..20 {
        let at = dice.roll(SIZE / 512);
        let len = (1 + dice.roll(100)).min(SIZE / 512 - at) * 512;
        let (at, range) = (at * 512, at as usize * 512..(at * 512 + len) as usize);
        let command = match dice.roll(4) {
            0 => {
                model[range].fill(0);
                format!("write -q -z -u {at} {len}")
            }
            _ => {
                let value = dice.roll(256) as u8;
                model[range].fill(value);
                format!("write -q -P {value} {at} {len}")
            }
        };
        arguments.extend(["-c".into(), command]);
    }
    arguments.push(top.to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    qemu("qemu-io", &arguments).map(drop)
}

/// Compressed, preallocated, old, of odd refcounts, with lazy refcounts; smaller and larger than what is below.
fn every_kind() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let source = place("source.img");
    let mut model: Vec<u8> = (0..SIZE).map(|n| (n * n / 777 % 253) as u8).collect();
    model[200_000..400_000].fill(0);
    std::fs::write(&source, &model)?;
    let kinds: [(&str, &[&str]); 7] = [
        ("compressed", &["-c"]),
        ("compressed-small", &["-c", "-o", "cluster_size=512"]),
        ("old", &["-o", "compat=0.10"]),
        ("metadata", &["-o", "preallocation=metadata"]),
        ("full", &["-o", "preallocation=full"]),
        ("refcounts", &["-o", "refcount_bits=1,cluster_size=2M"]),
        ("lazy", &["-o", "lazy_refcounts=on"]),
    ];
    for (name, options) in kinds {
        let path = place(name);
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend_from_slice(options);
        arguments.extend([source.as_str(), path.as_str()]);
        qemu("qemu-img", &arguments)?;
        check(read_all(&[&path])? == model, format!("{name}: content differs"))?;
        let mut changed = model.clone();
        ours(&[&path], &mut Dice(9), &mut changed)?;
        sound(Path::new(&path))?;
        let flat = place("flat");
        qemu("qemu-img", &["convert", "-O", "raw", &path, &flat])?;
        check(std::fs::read(&flat)? == changed, format!("{name}: QEMU reads something else after our writes"))?;
        // An overlay that is larger, and one that is smaller than its base.
        for size in [SIZE + 65536 + 512, SIZE / 2] {
            let over = place(&format!("over-{name}-{size}"));
            image(Path::new(&over), &NewImage { size, backing: Some((name, "qcow2")), ..NewImage::default() })?;
            let mut expected = changed.clone();
            expected.resize(size as usize, 0);
            check(read_all(&[&over, &path])? == expected, format!("{name}: an overlay of {size} differs"))?;
        }
    }
    Ok(())
}
