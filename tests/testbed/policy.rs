//! The SELinux module as a thing of its own: each rule beside a domain without it, and the verbs that install, replace and
//! remove it. The policy of twins and the judgement of what the kernel answers are `policies/twins`'.

use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::{Failed, Trial};

use crate::{cli::script, l1};

pub fn tests() -> Vec<Trial> {
    vec![
        Trial::test("svirt_14_15_40_41_43_49: every rule of the module grants, and its twin is denied", twins),
        Trial::test("svirt_50: what a guest prints fills rings of fixed size, with its pair", || l1::patiently(loud)),
        Trial::test("policy: install over a version, downgrade, remove, install again", || l1::patiently(life)),
    ]
}

/// What is compiled here and asked there.
fn out() -> PathBuf {
    l1::repo().join("target/twins")
}

fn run(command: &mut Command) -> Result<String, Failed> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// The twin policy takes the place of L1's for a few seconds. Programs are labelled by hand: they are not the real ones.
const ASK: &str = r#"
set -e
P=/usr/local/libexec/casemate/twins; D=/var/lib/casemate/twins; S=/sys/fs/selinux
boolean() { for b in $S/booleans/casemate_*; do echo $1 > $b; done; echo 1 > $S/commit_pending_bools; }
trap 'boolean 0; load_policy; rm -rf $P $D' EXIT
mkdir -p $P $D; cd /root/twins
cp twins $P/casemate-jailer; cp twins $P/casemate-runner
chcon -t casemate_jailer_exec_t $P/casemate-jailer; chcon -t casemate_runner_exec_t $P/casemate-runner
for f in image content plan; do head -c 4096 /dev/zero > $D/$f; done
set -- $(ls -l /dev/vda | sed 's/,//' | awk '{print $5, $6}')
mknod $D/imageblock b $1 $2; mknod $D/contentblock b $1 $2
chcon system_u:object_r:casemate_image_t:s0:c1,c2 $D/image $D/imageblock
chcon system_u:object_r:casemate_content_t:s0 $D/content $D/contentblock
chcon system_u:object_r:casemate_plan_t:s0 $D/plan
# one write(2) of the whole, as selinuxfs wants it; a boolean keeps its value over a load
dd if=policy of=$S/load bs=64M 2>/dev/null; boolean 1
./twins answers questions > answers
$P/casemate-jailer try $P/casemate-runner $D attempts > results
"#;

fn twins() -> Result<(), Failed> {
    let (place, tool) = (out(), l1::repo().join("policies/twins"));
    std::fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
    run(Command::new(&tool).arg(&place))?;
    let program = place.join("twins");
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testbed/payload/twins.rs");
    // static: in a runner's domain not even the C library can be opened
    let flags = ["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"];
    run(Command::new("rustc").args(flags).arg(&program).arg(source))?;
    let files: Vec<PathBuf> = ["policy", "questions", "attempts"].iter().map(|f| place.join(f)).collect();
    l1::sh(None, "mkdir -p /root/twins")?;
    l1::push(&[files, vec![program]].concat(), "/root/twins/")?;
    let asked = l1::sh(None, ASK)?;
    if !asked.status.success() {
        return Err(String::from_utf8_lossy(&asked.stderr).into_owned().into());
    }
    for name in ["answers", "results"] {
        let got = l1::sh(None, &format!("cat /root/twins/{name}"))?;
        std::fs::write(place.join(name), got.stdout).map_err(|e| format!("{name}: {e}"))?;
    }
    let said = run(Command::new(&tool).arg("--judge").arg(&place))?;
    if said.contains("rules shown by the kernel") { Ok(()) } else { Err(said.into()) }
}

/// A guest that shouts fills no more than its rings, which carry its pair.
fn loud() -> Result<(), Failed> {
    script(
        r#"
want 0 run -d -q --name cli-loud -- sh -c 'while :; do head -c 65536 /dev/zero | tr "\0" x; echo; done'
sleep 4
size=$(cat /run/casemate/vms/cli-loud/*-log.* | wc -c)
[ "$size" -gt 100000 ] || fail "it was not loud: $size bytes"
[ "$size" -lt 20000000 ] || fail "logs of $size bytes"
case $(stat -c %C /run/casemate/vms/cli-loud/output-log.0) in *:casemate_image_t:s0:c*) ;; *) fail "a log without a pair" ;; esac
want 0 casemate rm -f cli-loud
"#,
    )
    .map(drop)
}

/// Each change runs semodule in L1, about 25 s; so one script goes through them all, and the module of this checkout is
/// in the place again at the end.
fn life() -> Result<(), Failed> {
    let files: Vec<PathBuf> = std::fs::read_dir(l1::repo().join("policies"))
        .map_err(|e| e.to_string())?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cil"))
        .collect();
    l1::sh(None, "rm -rf /usr/share/casemate/policies; mkdir -p /usr/share/casemate/policies")?;
    l1::push(&files, "/usr/share/casemate/policies/")?;
    let done = script(
        r#"
known() { printf %s "system_u:object_r:$1:s0" > /sys/fs/selinux/context; } 2>/dev/null
modules() { semodule -lfull | grep -c ' casemate_'; }
shipped=$(ls /usr/share/casemate/policies/*.cil | wc -l)
# where this trial is made once more
rm -rf newer; [ $(modules) != 0 ] || want 0 casemate policy install
# refused while a sandbox runs, and says which
want 0 run -d -q --name cli-pol -- sleep 1000
want 125 casemate policy remove
has cli-pol err; has "stop them" err
want 0 casemate rm -f cli-pol
# over the installed module: a newer version, with a file and a type that this one has not
cp -r /usr/share/casemate/policies newer; echo '(type casemate_newer_t) (roletype object_r casemate_newer_t)' > newer/casemate_newer.cil
want 0 casemate policy install --from newer
has "$((shipped + 1)) CIL files" out; has "apart: yes" out
[ $(modules) = $((shipped + 1)) ] || fail "$(semodule -lfull | grep casemate)"
known casemate_newer_t || fail "the newer version is not loaded"
# the shipped one again: what only the newer had is gone
want 0 casemate policy install
has "took away" out; has casemate_newer out
[ $(modules) = $shipped ] || fail "$(semodule -lfull | grep casemate)"
known casemate_newer_t && fail "the newer version's type is still there"
want 0 run --rm -q --require enforced -- true
# gone, with its labels
want 0 casemate policy remove
has "removed $shipped modules" out; has "apart: no" out
[ $(modules) = 0 ] || fail "$(semodule -lfull | grep casemate)"
case $(stat -c %C /usr/libexec/casemate/casemate-jailer) in *casemate*|*unlabeled*) fail "$(stat -c %C /usr/libexec/casemate/casemate-jailer)" ;; esac
want 125 casemate policy check
has "casemate module is not loaded" err
want 125 run --rm -q -- true
want 125 casemate policy remove
has "not installed" err
# and back
want 0 casemate policy install
want 0 casemate policy status
has "apart: yes" out
grep -q "deny rules are not loaded" out && fail "the runner may do more than its rules"
want 0 run --rm -q --require enforced -- true
"#,
    );
    done.map(drop)
}
