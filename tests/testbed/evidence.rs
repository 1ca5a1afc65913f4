//! Evidence of a Linux guest on a host that enforces, verified on this one, which is another machine with another kernel and
//! no SELinux: by the build of this checkout.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use libtest_mimic::{Failed, Trial};

use crate::cli::script;
use crate::l1;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| {
        Trial::test(format!("evidence: {name}"), move || l1::patiently(run))
    };
    vec![
        trial("made under enforcing, verified on another machine, and no byte of it may differ", travels),
        trial("the key is the jailer's alone", key),
    ]
}

/// Made in L1, pulled here.
fn travels() -> Result<(), Failed> {
    l1::sh(None, "rm -rf /tmp/evidence; mkdir /tmp/evidence; dmesg -C")?;
    script(
        r#"
want 0 run -d -q --name cli-evidence -e TOKEN=hunter2-hunter2 -- sleep 1000
want 0 casemate evidence cli-evidence -o /tmp/evidence/bundle --nonce 7f3a --with-policy
want 0 casemate evidence key -o /tmp/evidence/key.pem
want 0 casemate kill cli-evidence
want 0 casemate evidence cli-evidence -o /tmp/evidence/ended
want 0 casemate evidence chain -o /tmp/evidence/chain
want 0 casemate rm cli-evidence
cp "$(casemate kernel list --format json | sed -n 's/.*"boot_image": *"\(.*\)".*/\1/p' | head -1)" /tmp/evidence/kernel || fail "no kernel"
grep -q hunter2 /tmp/evidence/bundle && fail "a secret in the bundle"
"#,
    )?;
    let denied = l1::sh(None, "dmesg | grep -E 'avc: *denied' | grep casemate")?;
    let denied = String::from_utf8_lossy(&denied.stdout).into_owned();
    if !denied.is_empty() {
        return Err(format!("making it was denied something: {denied}").into());
    }
    let here = tempfile::tempdir()?;
    for file in ["bundle", "ended", "key.pem", "chain", "kernel"] {
        l1::pull(&format!("/tmp/evidence/{file}"), &here.path().join(file))?;
    }
    let said = verify(
        here.path(),
        &["bundle", "ended", "--key", "key.pem", "--chain", "chain", "--kernel", "kernel", "--sandbox", "cli-evidence"],
    )?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let holds = said.status.code() == Some(0);
    for told in ["the policy answers the same", "kernel is kernel", "the plan is what the planner makes", "linked"] {
        if !holds || !text.contains(&format!("ok          {told}")) && !text.contains(told) {
            return Err(format!("{}, '{told}':\n{text}\n{}", said.status, String::from_utf8_lossy(&said.stderr)).into());
        }
    }
    flipped(here.path())
}

/// One bit of any byte: the envelope's own bytes, and a share of the payload's.
fn flipped(place: &Path) -> Result<(), Failed> {
    use casemate_evidence::{Bundle, PublicKey};
    let key = PublicKey::from_pem(&fs::read_to_string(place.join("key.pem"))?)?;
    let bundle = fs::read(place.join("ended"))?;
    Bundle::open(&bundle, Some(key))?;
    let tail = bundle.len() - 300;
    for at in (0..16).chain((16..tail).step_by((tail / 100).max(1))).chain(tail..bundle.len()) {
        let mut forged = bundle.clone();
        forged[at] ^= 1 << (at % 8);
        if Bundle::open(&forged, Some(key)).is_ok() {
            return Err(format!("byte {at} does not count").into());
        }
    }
    let mut forged = fs::read(place.join("bundle"))?;
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    fs::write(place.join("forged"), &forged)?;
    let said = verify(place, &["forged", "--key", "key.pem"])?;
    match said.status.code() {
        Some(1) => Ok(()),
        _ => Err(format!("a changed bundle: {}", said.status).into()),
    }
}

fn verify(place: &Path, args: &[&str]) -> Result<Output, Failed> {
    let program = l1::repo().join("target/casemate/casemate").canonicalize()?;
    let mut command = Command::new(program);
    command.env("CASEMATE_RUN_DIR", "/nonexistent").current_dir(place);
    Ok(command.args(["evidence", "verify"]).args(args).output()?)
}

/// Types, modes, and what the loaded policy says of a runner.
fn key() -> Result<(), Failed> {
    script(
        r#"
want 0 casemate evidence key
stat -c '%C %a' /var/lib/casemate/evidence /var/lib/casemate/evidence/key >out
has casemate_evidence_t:s0 out; has ' 700' out; has casemate_key_t:s0 out; has ' 400' out
restorecon -nvR /var/lib/casemate/evidence >out; [ ! -s out ] || fail "restorecon would relabel"
want 0 casemate audit policy rights
grep -E 'casemate_(key|evidence)_t' out && fail "a runner reaches the key"
chmod 0440 /var/lib/casemate/evidence/key
want 125 casemate evidence key
has 0400 err
chmod 0400 /var/lib/casemate/evidence/key
want 0 casemate evidence key
"#,
    )
    .map(drop)
}
