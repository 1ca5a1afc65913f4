//! Crashes on a host that enforces, with real labels: SIGKILL after every line of the journal and along the system calls
//! of a whole life and of `repair`, a reboot in between, and what the administrator sees of it.
//!
//! The killer is `tests/src/bin/crash-driver.rs`, in L1, as an administrator; the jailer is the installed one in its
//! domain. Images lie on L1's disk, where both `security.selinux` and `trusted.casemate.owners` are kept.

use std::process::Command;
use std::sync::OnceLock;

use libtest_mimic::{Failed, Trial};

use crate::{cli, l1};

const DRIVER: &str = "/usr/local/bin/crash-driver";
/// System calls between two kills. With 1 in it (CASEMATE_EACH_CALL), every one: an hour.
const CALLS: usize = 97;
const REPAIR_CALLS: usize = 41;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(name.to_owned(), run);
    vec![
        trial("svirt_12_34_37: SIGKILL after each line of the journal, of start and stop", || drive("lines")),
        trial("svirt_34: SIGKILL along the system calls of start and stop", || drive(&calls("calls", CALLS))),
        trial("svirt_34: SIGKILL of repair, along its system calls", || drive(&calls("repair", REPAIR_CALLS))),
        trial("svirt_33_34: labels of a boot that is over are restored", || drive("reboot")),
        trial("svirt_33_35_38: copies, renames, libvirt and administrators, as a user sees them", user_view),
        trial("svirt_36: content that others share is not restored before the last has gone", shared_content),
    ]
}

fn calls(what: &str, stride: usize) -> String {
    let stride = if std::env::var_os("CASEMATE_EACH_CALL").is_some() { 1 } else { stride };
    format!("{what} {stride}")
}

fn installed() -> Result<(), Failed> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let install = || {
        cli::script("true").map_err(|e| e.message().unwrap_or_default().to_owned())?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = ["build", "-q", "-p", "casemate-tests", "--bin", "crash-driver"];
        let output = Command::new(cargo).current_dir(l1::repo()).args(build).output().map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        l1::push(&[l1::repo().join("target/debug/crash-driver")], "/usr/local/bin/")
    };
    DONE.get_or_init(install).clone().map_err(Failed::from)
}

fn drive(what: &str) -> Result<(), Failed> {
    installed()?;
    let place = "/var/lib/casemate/crash";
    let script = format!(
        "mkdir -p {place}; restorecon -R {place}; \
         TMPDIR={place} CASEMATE_TEST_BIN=/usr/libexec/casemate {DRIVER} {what}; status=$?; rm -rf {place}; exit $status"
    );
    let output = l1::sh(None, &script)?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{}", told.trim_end());
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{told}{}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// A detached guest whose warden and runner are killed, with `d.img` for itself; what it left is looked at and repaired.
const CRASH: &str = r#"
fail() { echo "FAILED: $*"; cat out err 2>/dev/null | tail -30; exit 1; }
field() { grep -o "\"$1\": *\(\"[^\"]*\"\|[a-z0-9]*\)" | sed 's/^[^:]*: *//; s/"//g'; }
owners() { getfattr --absolute-names --only-values -n trusted.casemate.owners "$1" 2>/dev/null; }
crash() { # NAME IMAGE
    want 0 run -d -q --name $1 --disk id=d,path=$PWD/$2,format=raw -- sleep 1000
    for role in runner warden; do
        kill -9 $(casemate inspect --format json $1 | grep -A1 "\"$role\"" | field pid | head -1)
    done
    sleep 0.3
}
"#;

fn user_view() -> Result<(), Failed> {
    let body = r#"
truncate -s 4M d.img; before=$(stat -c %C d.img)
crash cli-c1 d.img
during=$(stat -c %C d.img)
case $during in *casemate_image_t*) ;; *) fail "no label was left: $during" ;; esac
ls $CASEMATE_STATE_DIR/held >/dev/null 2>&1 || ls /var/lib/casemate/held | grep -q cli-c1 || fail "no record on disk"
want 0 casemate repair -n cli-c1
has "would be" out; has "$during -> $before (remembered)" out; has "nothing was changed" out
[ "$(stat -c %C d.img)" = "$during" ] || fail "a dry run changed the label"
# a copy with all attributes, made by root: neither its owner nor its original is believed
cp -a --preserve=all d.img copy.img
mv d.img renamed.img
want 0 casemate repair cli-c1
has "renamed.img now" out
[ "$(stat -c %C renamed.img)" = "$before" ] || fail "$(stat -c %C renamed.img) instead of $before"
[ "$(stat -c %C copy.img)" = "$during" ] || fail "the copy was touched: $(stat -c %C copy.img)"
want 0 casemate repair cli-c1 || true
want 0 casemate rm cli-c1
# the administrator's label stays
crash cli-c2 renamed.img
chcon -t public_content_t -l s0 renamed.img
want 0 casemate repair cli-c2
has "was changed to" out
case $(stat -c %C renamed.img) in *public_content_t*) ;; *) fail "the administrator's label is gone" ;; esac
want 0 casemate rm cli-c2
true
"#;
    cli::script(&format!("{CRASH}{body}")).map(drop)
}

/// There is no migration; what libvirt's migration source may not do, a second user of the file shows.
fn shared_content() -> Result<(), Failed> {
    let body = r#"
truncate -s 4M base.img; before=$(stat -c %C base.img)
disk=id=d,path=$PWD/base.img,format=raw,ro
for vm in cli-s1 cli-s2; do want 0 run -d -q --name $vm --disk $disk -- sleep 1000; done
during=$(stat -c %C base.img)
want 0 casemate kill cli-s1
[ "$(stat -c %C base.img)" = "$during" ] || fail "restored while cli-s2 reads it"
kill -9 $(casemate inspect --format json cli-s2 | grep -A1 '"warden"' | field pid | head -1); sleep 0.3
want 0 casemate repair
[ "$(stat -c %C base.img)" = "$before" ] || fail "$(stat -c %C base.img) instead of $before"
want 0 casemate rm cli-s1 cli-s2
casemate --help | grep -iq migrat && fail "there is a migration, and this test does not know of it"
true
"#;
    cli::script(&format!("{CRASH}{body}")).map(drop)
}
