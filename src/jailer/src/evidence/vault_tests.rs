use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use casemate_evidence::{Chain, Link};

use super::*;

fn state() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("evidence");
    (temp, dir)
}

/// Appends a record; answers its number.
fn append(state: &Path) -> Result<u64, StepFailed> {
    Vault::open(state)?.append(|position, key| {
        let link = Link {
            sequence: position.sequence,
            previous: position.previous,
            time: 1,
            boot_id: "b".into(),
            sandbox: "s".into(),
            payload: Digest::of(b""),
        };
        Ok((link.sequence, Record::sign(link, key)?))
    })
}

fn whole(state: &Path, records: usize) {
    let chain = Vault::open(state).unwrap().export().unwrap();
    let chain = Chain::parse(chain.as_bytes(), None).unwrap();
    assert_eq!((chain.problems(), chain.records.len()), (vec![], records));
}

#[test]
fn a_key_is_made_once_and_records_follow_each_other() {
    let (temp, dir) = state();
    let key = Vault::open(temp.path()).unwrap().key().unwrap().public();
    for n in 1..=3 {
        assert_eq!(append(temp.path()).unwrap(), n);
    }
    assert_eq!(Vault::open(temp.path()).unwrap().key().unwrap().public(), key);
    assert_eq!(fs::read_to_string(dir.join(PUBLIC)).unwrap(), key.to_pem());
    assert_eq!(fs::metadata(dir.join(KEY)).unwrap().permissions().mode() & 0o7777, 0o400);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [CHAIN, KEY, PUBLIC]);
    whole(temp.path(), 3);
}

#[test]
fn a_key_that_others_may_have_read_is_refused() {
    let refused = |change: &dyn Fn(&Path)| {
        let (temp, dir) = state();
        append(temp.path()).unwrap();
        change(&dir);
        append(temp.path()).expect_err("refused").to_string()
    };
    let mode = |mode| move |dir: &Path| fs::set_permissions(dir.join(KEY), fs::Permissions::from_mode(mode)).unwrap();
    for wrong in [0o440, 0o404, 0o600, 0o500, 0o420] {
        let said = refused(&mode(wrong));
        assert!(said.contains(&format!("{wrong:04o}")) || said.contains("nobody else can write"), "{said}");
    }
    let moved = |dir: &Path| fs::rename(dir.join(KEY), dir.join("elsewhere")).unwrap();
    let said = refused(&|dir| {
        moved(dir);
        symlink("elsewhere", dir.join(KEY)).unwrap();
    });
    assert!(said.contains("key"), "{said}");
    assert!(refused(&|dir| fs::hard_link(dir.join(KEY), dir.join("second")).unwrap()).contains("2 names"));
    assert!(refused(&moved).contains("a chain and no key"));
    assert!(
        refused(&|dir| {
            moved(dir);
            fs::create_dir(dir.join(KEY)).unwrap();
        })
        .contains("regular file")
    );
    let garbage = refused(&|dir| {
        moved(dir);
        fs::write(dir.join(KEY), "x").unwrap();
        mode(0o400)(dir);
    });
    assert!(garbage.contains("PEM"), "{garbage}");
    assert!(refused(&|dir| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap()).contains("0700"));
    if rustix::process::geteuid().is_root() {
        let owned = refused(&|dir| std::os::unix::fs::chown(dir.join(KEY), Some(1), None).unwrap());
        assert!(owned.contains("root's"), "{owned}");
    }
    // Another key in its place: the chain is not that key's.
    let foreign = refused(&|dir| {
        moved(dir);
        fs::write(dir.join(KEY), KeyPair::pem(&[3; 32])).unwrap();
        mode(0o400)(dir);
    });
    assert!(foreign.contains("does not begin with this host's key"), "{foreign}");
}

#[test]
fn a_directory_behind_a_link_is_refused() {
    let (temp, dir) = state();
    fs::create_dir(temp.path().join("elsewhere")).unwrap();
    symlink("elsewhere", &dir).unwrap();
    assert!(append(temp.path()).is_err());
}

/// What a death leaves: the announced record, and any part of its line in the chain.
#[test]
fn an_append_that_was_cut_short_is_completed() {
    let (temp, dir) = state();
    append(temp.path()).unwrap();
    let before = fs::read(dir.join(CHAIN)).unwrap();
    append(temp.path()).unwrap();
    let after = fs::read(dir.join(CHAIN)).unwrap();
    for written in before.len()..=after.len() {
        fs::write(dir.join(NEXT), &after[before.len()..]).unwrap();
        fs::write(dir.join(CHAIN), &after[..written]).unwrap();
        whole(temp.path(), 2);
        assert!(!dir.join(NEXT).exists());
        assert_eq!(fs::read(dir.join(CHAIN)).unwrap(), after, "{written}");
    }
    assert_eq!(append(temp.path()).unwrap(), 3);
    // Before it was announced: nothing happened.
    fs::write(dir.join("chain.next.new"), "{\"li").unwrap();
    fs::write(dir.join("key.new"), "--").unwrap();
    assert_eq!(append(temp.path()).unwrap(), 4);
    whole(temp.path(), 4);
}

#[test]
fn a_damaged_chain_is_refused_and_never_cut() {
    let (temp, dir) = state();
    for _ in 0..3 {
        append(temp.path()).unwrap();
    }
    let whole = fs::read(dir.join(CHAIN)).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|b| *b == b'\n').collect();
    let other = {
        let (temp, dir) = state();
        append(temp.path()).unwrap();
        fs::read(dir.join(CHAIN)).unwrap().split_inclusive(|b| *b == b'\n').nth(1).unwrap().to_vec()
    };
    let next_of_other = [(NEXT, other.clone())];
    let next_again = [(NEXT, lines[2].to_vec())];
    let next_damaged = [(NEXT, lines[3][..10].to_vec())];
    for (chain, more) in [
        (whole[..whole.len() - 1].to_vec(), &[][..]),
        (whole[..whole.len() - 9].to_vec(), &[]),
        ([&whole[..], b"{\"link\""].concat(), &[]),
        ([&whole[..], b"\n"].concat(), &[]),
        ([&whole[..], &other].concat(), &[]),
        (vec![], &[]),
        (lines[0][..5].to_vec(), &[]),
        (vec![b'x'; 3 * MAX_LINE], &[]),
        (whole.clone(), &next_of_other),
        (whole.clone(), &next_again),
        (whole.clone(), &next_damaged),
        ([lines[0], lines[1], b"{\"x"].concat(), &next_again),
    ] {
        fs::write(dir.join(CHAIN), &chain).unwrap();
        for (name, bytes) in more {
            fs::write(dir.join(name), bytes).unwrap();
        }
        let said = append(temp.path()).expect_err("refused").to_string();
        assert!(said.contains("restore it"), "{said}");
        assert_eq!(fs::read(dir.join(CHAIN)).unwrap(), chain, "left as it was");
        let _ = fs::remove_file(dir.join(NEXT));
    }
    fs::write(dir.join(CHAIN), &whole).unwrap();
    assert_eq!(append(temp.path()).unwrap(), 4);
}
