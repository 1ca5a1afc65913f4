//! Who can reach what of whom, on a host that enforces: the attack matrix with both SELinux columns, and the facts of the
//! kernel that the design of labels stands on.
//!
//! The module of the twin domain (`payload/matrix_twin.cil`) is loaded for these trials and taken out again.

use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_tests::guest;
use iced_x86::code_asm::CodeAssembler;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::{cli, l1};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(name, move || with_twin(run));
    vec![
        trial("svirt_13_42_47_48: every class of object, the policy's word beside the kernel's", matrix),
        // One trial: loading a policy takes longer than all of them.
        trial(
            "svirt_37_46_48_49: what the kernel does with labels of open files, sockets, memfds and /dev/kvm",
            kernel,
        ),
    ]
}

fn payload(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/payload").join(file)
}

/// Loads the twin's module around a trial.
fn with_twin(run: fn() -> Result<(), Failed>) -> Result<(), Failed> {
    cli::ready()?;
    facts()?;
    l1::policy(&[payload("matrix_twin.cil")])?;
    let result = run();
    let sweep = "for name in $(casemate ps -aq | grep '^mx-'); do casemate rm -f $name; done >/dev/null 2>&1; true";
    l1::sh(None, sweep)?;
    let back = l1::policy(&[]);
    result.and(back.map_err(Failed::from))
}

/// Builds the program of the facts and puts it into L1.
fn facts() -> Result<(), String> {
    let out = l1::repo().join("target/facts");
    let built = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .args([&out, &payload("facts.rs")])
        .output()
        .map_err(|e| e.to_string())?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).into_owned());
    }
    l1::push(&[out], "/tmp/")
}

/// Waits for an interrupt that never comes: a sandbox that costs nothing and needs no kernel.
fn asleep(a: &mut CodeAssembler) -> guest::Asm {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

/// Its kernel, as L1's /tmp/asleep.elf.
pub fn push_asleep() -> Result<(), Failed> {
    let kernel = l1::repo().join("target/asleep.elf");
    std::fs::write(&kernel, guest::pvh_elf(asleep))?;
    Ok(l1::push(&[kernel], "/tmp/")?)
}

/// A script in L1 with the programs installed; its stdout.
fn script(body: &str) -> Result<String, Failed> {
    let tools = r#"set -u
fail() { echo "FAILED: $*"; exit 1; }
eventually() { n=0; until "$@" >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 100 ] || fail "never: $*"; sleep 0.1; done; }
twin() { level=$1; shift; runcon unconfined_u:unconfined_r:casemate_twin_t:$level "$@"; }
d=$(mktemp -d /var/lib/mx.XXXXXX); trap 'rm -rf $d' EXIT
chcon -t casemate_image_t $d; cd $d; cp /tmp/facts facts; chcon -t casemate_runner_exec_t facts
"#;
    let out = l1::sh(None, &format!("{tools}{body}\necho ALL-HOLD"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if said.contains("ALL-HOLD") { Ok(said) } else { Err(said.into()) }
}

/// Rows that must be there: a class that cannot be tried is not shown to be apart.
const CLASSES: [&str; 16] = [
    "regular file",
    "log",
    "block device",
    "directory",
    "FIFO",
    "Unix socket",
    "control channel",
    "memfd",
    "POSIX IPC",
    "System V IPC",
    "process",
    "keyring",
    "vsock",
    "tun",
    "io_uring, userfaultfd",
    "KVM, eventfd",
];

fn matrix() -> Result<(), Failed> {
    push_asleep()?;
    let said = script(
        r#"
for m in tun vsock vsock_loopback; do modprobe $m 2>/dev/null; done
for vm in mx-a mx-b; do
    truncate -s 8M /var/lib/$vm.img; chcon -t var_lib_t /var/lib/$vm.img
    casemate run -d -q --bare --memory 4M --kernel /tmp/asleep.elf --name $vm \
        --disk id=data,path=/var/lib/$vm.img,format=raw || fail "start $vm"
done
casemate attack --matrix --twin casemate_twin_t mx-a mx-b > table; echo "status $?" >> table
casemate --format json attack --matrix --twin casemate_twin_t mx-a mx-b > json; echo "json status $?" >> table
cat table; echo JSON-BEGINS; cat json; echo; echo JSON-ENDS
ls -d /run/casemate/matrix-* 2>/dev/null && fail "a scratch directory is left"
ls /dev/casemate-* /var/lib/casemate-* /dev/shm/casemate-* 2>/dev/null && fail "an object is left"
[ "$(ipcs -a 2>/dev/null | grep -c 0x00000000)" = 0 ] || fail "IPC is left"
casemate rm -f mx-a mx-b || fail "the end"
rm -f /var/lib/mx-?.img
"#,
    )?;
    let (table, rest) = said.split_once("JSON-BEGINS").ok_or("no report")?;
    eprintln!("{table}");
    let json = rest.split("JSON-ENDS").next().unwrap_or_default();
    let report: Value = serde_json::from_str(json.trim()).map_err(|e| format!("{e}: {json}"))?;
    judge(&report)?;
    if table.contains("\nstatus 0") && table.contains("json status 0") {
        Ok(())
    } else {
        Err("the matrix holds, and its exit status says otherwise".into())
    }
}

fn judge(report: &Value) -> Result<(), Failed> {
    let rows = report["matrix"].as_array().cloned().unwrap_or_default();
    let bad: Vec<&Value> = rows.iter().filter(|row| row["ok"] != true).collect();
    if !bad.is_empty() {
        return Err(format!("{bad:#?}").into());
    }
    for class in CLASSES {
        if !rows.iter().any(|row| row["class"] == class) {
            return Err(format!("nothing of {class} was tried: {:#}", report["skipped"]).into());
        }
    }
    let find = |class: &str, attempt: &str| {
        let row = rows.iter().find(|row| row["class"] == class && row["attempt"] == attempt);
        row.cloned().ok_or_else(|| Failed::from(format!("no row {class}: {attempt}")))
    };
    // Where types let the runner do it to its own, categories alone keep it from another's.
    for (class, attempt) in
        [("regular file", "write, passed"), ("log", "write, passed"), ("memfd", "read its plan, inherited")]
    {
        let row = find(class, attempt)?;
        let (cross, own) = (&row["selinux"], &row["own_selinux"]);
        if cross["expected"] != "categories" || own["actual"] != "allowed" {
            return Err(format!("{class}, {attempt}: {row:#}").into());
        }
    }
    // And what the runner was given works under all layers.
    let own = find("regular file", "read, inherited")?;
    if own["own_all"] != "allowed" {
        return Err(format!("its own disk: {own:#}").into());
    }
    // The twin shows both: what categories hold, and what they leave to types.
    for (class, attempt, verdict) in [
        ("System V IPC", "attach shared memory", "categories"),
        ("process", "ptrace", "categories"),
        ("keyring", "read a key", "categories"),
        ("vsock", "connect to a port", "allows"),
        ("KVM, eventfd", "have its VM, passed", "allows"),
    ] {
        let row = find(class, attempt)?;
        if row["categories"]["expected"] != verdict || row["selinux"]["expected"] != "types" {
            return Err(format!("{class}, {attempt}: {row:#}").into());
        }
    }
    Ok(())
}

fn kernel() -> Result<(), Failed> {
    relabelled()?;
    accepted()?;
    memfds()?;
    kvm_node()
}

/// 37: a relabel is seen by who has the file open, and not by who has it mapped.
fn relabelled() -> Result<(), Failed> {
    script(
        r#"
echo 1 > f; chcon -l s0:c1,c2 f; mkfifo to; : > out
twin s0:c1,c2 ./facts held $d/f < to > out & exec 3> to
echo before >&3; eventually grep -q "before mapped" out
chcon -l s0:c3,c4 f
echo foreign >&3; eventually grep -q "foreign mapped" out
chcon -l s0:c1,c2 f
echo back >&3; eventually grep -q "back mapped" out
exec 3>&-; wait; cat out
for want in "before read ok" "before write ok" "foreign read errno 13" "foreign write errno 13" "foreign mapped ok" \
    "back read ok" "back write ok"; do grep -qx "$want" out || fail "no '$want'"; done
"#,
    )
    .map(drop)
}

/// 46: an accepted socket has its listener's type and its connector's level.
fn accepted() -> Result<(), Failed> {
    script(
        r#"
: > out; twin s0:c1,c2 ./facts listen $d/s 3 > out & eventually grep -q listener out
me=unconfined_u:unconfined_r:unconfined_t
./facts connect $d/s
./facts connect $d/s $me:s0
./facts connect $d/s $me:s0:c3,c4
wait; cat out
grep -qx "accepted unconfined_u:unconfined_r:casemate_twin_t:s0-s0:c0.c1023 errno 13" out || fail "a wide client"
grep -qx "accepted unconfined_u:unconfined_r:casemate_twin_t:s0 ok" out || fail "a client at its low level"
grep -qx "accepted unconfined_u:unconfined_r:casemate_twin_t:s0:c3,c4 errno 13" out || fail "a neighbour's level"
"#,
    )
    .map(drop)
}

/// 48: a memfd has its maker's level whatever fscreate says, until it is relabelled.
fn memfds() -> Result<(), Failed> {
    script(
        r#"
want=system_u:object_r:casemate_image_t:s0:c1,c2
cp /tmp/facts plain; ./plain memfd $want > out; cat out
grep -q "^made .*:s0$" out || fail "fscreate was heard: the jailer could do without its relabel"
grep -qx "set ok" out && grep -qx "relabelled $want" out || fail "a memfd takes no label"
"#,
    )
    .map(drop)
}

/// 49: every level may open /dev/kvm: the node has no categories, and what comes of it is private to its process.
fn kvm_node() -> Result<(), Failed> {
    script(
        r#"
[ "$(stat -c %C /dev/kvm)" = system_u:object_r:kvm_device_t:s0 ] || fail "/dev/kvm is $(stat -c %C /dev/kvm)"
: > out; twin s0:c1,c2 ./facts open /dev/kvm >> out; twin s0:c3,c4 ./facts open /dev/kvm >> out
[ "$(grep -cx 'end ok' out)" = 2 ] || fail "$(cat out)"
"#,
    )
    .map(drop)
}
