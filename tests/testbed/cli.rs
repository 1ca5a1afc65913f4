//! The command line with Linux guests, on a host that enforces: what a user types, what comes back.
//!
//! The programs are those of target/casemate (scripts/build). Each trial is one script in L1, in a run directory of
//! its own beside a state directory that all share.

use std::path::Path;
use std::sync::OnceLock;

use libtest_mimic::{Failed, Trial};

use crate::l1;

pub fn tests() -> Vec<Trial> {
    let trial =
        |name: &str, run: fn() -> Result<(), Failed>| Trial::test(format!("cli: {name}"), move || l1::patiently(run));
    vec![
        trial("posture, output, exit status", basics),
        trial("exit statuses of all ends", statuses),
        trial("standard input and output are carried byte for byte", pipes),
        trial("signals reach the workload, the second ends the sandbox", signals),
        trial("a terminal, its size, and the way out of it", terminal),
        trial("exec, files in and out, logs, pause, stop", life),
        trial("hostile output and hostile archives do no harm", hostile),
        trial("two guests, and an attack between them that every layer stops", attack),
        trial("a client and a warden that are killed leave nothing behind", killed),
    ]
}

/// Installs the programs, imports a kernel, once in each L1.
pub fn ready() -> Result<(), Failed> {
    static DONE: [OnceLock<Result<(), String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let install = || {
        let built = l1::repo().join("target/casemate");
        let files = |names: &[&str]| names.iter().map(|n| built.join(n)).collect::<Vec<_>>();
        if let Some(missing) = files(&["casemate", "casemate-jailer"]).iter().find(|f| !Path::new(f).exists()) {
            return Err(format!("{} is not built: scripts/build", missing.display()));
        }
        l1::push(
            &files(&["casemate-jailer", "casemate-runner", "casemate-agent", "casemate-probe"]),
            "/usr/libexec/casemate/",
        )?;
        l1::push(&files(&["casemate"]), "/usr/bin/casemate")?;
        let import = "casemate kernel list --format json | grep -q '\"default\": true' || casemate kernel import /var/lib/testbed/trixie.deb";
        // What a failed run of these tests has left.
        let sweep =
            "casemate repair >/dev/null; for name in $(casemate ps -aq | grep '^cli-'); do casemate rm -f $name; done";
        l1::sh(None, sweep)?;
        let out = l1::sh(None, import)?;
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    };
    DONE[usize::from(l1::is_beside_others())].get_or_init(install).clone().map_err(Failed::from)
}

/// Runs a script whose every line must hold. `run` starts a tiny guest; `want CODE CMD…` runs a command and compares its
/// exit status; `has TEXT FILE` looks for a text. In the background `casemate` itself is called: `$!` of a function is a shell. At the end nothing may be left.
pub fn script(body: &str) -> Result<String, Failed> {
    ready()?;
    let whole = format!(
        r#"set -u
dir=$(mktemp -d /tmp/cli.XXXXXX); cd $dir
export CASEMATE_RUN_DIR=/run/casemate
ROOT="--root tar:/var/lib/testbed/guest-rootfs-tiny.tar"
run() {{ casemate run $ROOT "$@"; }}
fail() {{ echo "FAILED: $*"; cat out err 2>/dev/null | tail -20; exit 1; }}
want() {{ code=$1; shift; "$@" >out 2>err </dev/null; got=$?; [ $got = $code ] || fail "status $got instead of $code: $*"; }}
has() {{ grep -qF -- "$1" "$2" || fail "no '$1' in $2"; }}
eventually() {{ n=0; until "$@" >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 200 ] || fail "never: $*"; sleep 0.1; done; }}
{body}
cd /; rm -rf $dir
echo ALL-HOLD
"#
    );
    let out = l1::sh(None, &whole)?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if said.contains("ALL-HOLD") { Ok(said) } else { Err(said.into()) }
}

fn basics() -> Result<(), Failed> {
    script(
        r#"
want 7 run --rm --name cli-a -- sh -c 'echo to-out; echo to-err >&2; id -u; exit 7'
[ "$(cat out)" = "to-out
0" ] || fail "stdout"
has "casemate: cli-a: posture enforced (selinux c" err
has to-err err
want 3 run --rm -q --name cli-a -u 7:8 -w /tmp -e A=b --hostname here -- sh -c 'echo $(id -u):$(id -g) $(pwd) $A $(hostname); exit 3'
has "7:8 /tmp b here" out
[ ! -s err ] || fail "-q says nothing"
want 0 run --rm -q --require enforced --cpus 2 -m 320M -- sh -c 'nproc; grep MemTotal /proc/meminfo'
has 2 out
want 0 casemate ps -a -q
grep -q '^cli-' out && fail "something is left"
want 0 casemate plan $ROOT -- true
has "posture enforced" out
want 0 casemate doctor
has "the posture 'enforced'" out
"#,
    )
    .map(drop)
}

fn statuses() -> Result<(), Failed> {
    script(
        r#"
want 127 run --rm -q -- no-such-program
want 126 run --rm -q -- /etc/passwd
want 137 run --rm -q -- sh -c 'kill -9 $$'
want 124 run --rm -q --timeout 3s -- sleep 100
want 125 run --rm -q -- poweroff -f
has "before its workload had ended" err
want 125 run --rm -q -- sh -c 'echo c > /proc/sysrq-trigger; sleep 5'
has "kernel panicked" err
want 125 run --rm -q -w /no/where -- true
want 125 run --rm -q -u no-such-user -- true
want 125 run --rm --format json -q -m 1X -- true
has '"exit_code":125' err
"#,
    )
    .map(drop)
}

fn pipes() -> Result<(), Failed> {
    script(
        r#"
head -c 3000001 /dev/urandom > big
sum=$(sha256sum < big)
[ "$(run --rm -q -i -- cat < big | sha256sum)" = "$sum" ] || fail "cat through a guest"
[ "$(run --rm -q -i -- sha256sum < big)" = "$sum" ] || fail "into a guest"
[ "$(run --rm -q -- sh -c 'cat; echo end')" = end ] || fail "without -i standard input is empty"
[ "$(run --rm -q -- yes | head -n 2 | tr -d '\n')" = yy ] || fail "a reader that leaves"
"#,
    )
    .map(drop)
}

fn signals() -> Result<(), Failed> {
    script(
        r#"
began() { eventually grep -q up out; }
# Ctrl-C in a terminal
: > out; (began; printf '\003'; sleep 3) | script -qec "casemate run $ROOT --rm -q -- sh -c 'echo up; exec sleep 100'" /dev/null > out
[ $? = 130 ] || fail "Ctrl-C"
# A shell's background job ignores SIGINT, so SIGTERM from here on.
: > out; casemate run $ROOT --rm -q -- sh -c 'trap "echo told" TERM; echo up; while :; do sleep 0.2; done' > out 2>err & p=$!
began; kill -TERM $p; eventually grep -q told out; kill -TERM $p; wait $p; [ $? = 137 ] || fail "two SIGTERM"
: > out; casemate run $ROOT --rm -q -- sh -c 'trap "echo one; exit 5" USR1; echo up; while :; do sleep 0.2; done' > out 2>err & p=$!
began; kill -USR1 $p; wait $p; [ $? = 5 ] || fail "SIGUSR1"
for t in 0.02 0.1 0.4 1 2; do
    casemate run $ROOT --name cli-int -q -- sleep 100 > out 2>err & p=$!
    sleep $t; kill -TERM $p; wait $p; got=$?
    [ $got = 143 ] || fail "SIGTERM after $t: $got"
    [ ! -e /run/casemate/vms/cli-int ] || casemate rm cli-int >/dev/null || fail "left after $t"
done
"#,
    )
    .map(drop)
}

fn terminal() -> Result<(), Failed> {
    script(
        r#"
want 0 run -d -q --name cli-tty -- sleep 1000
(sleep 2; printf 'stty size; echo a$((1+1))b\n'; sleep 1; printf '\003'; sleep 0.5; printf 'exit 3\n'; sleep 1) |
    script -qec "stty rows 33 cols 99; casemate exec -it cli-tty -- sh" /dev/null > out; got=$?
[ $got = 3 ] || fail "status $got"
has "33 99" out; has a2b out
(sleep 2; printf 'sleep 100\n'; sleep 1; printf '\035\035\035'; sleep 1) |
    script -qec "casemate exec -it cli-tty -- sh; echo st=\$?; stty -a" /dev/null > out
has st=137 out
grep -q -e '-icanon' out && fail "the terminal is still raw"
want 125 casemate exec -t cli-tty -- true
has "not a terminal" err
want 0 casemate rm -f cli-tty
"#,
    )
    .map(drop)
}

fn life() -> Result<(), Failed> {
    script(
        r#"
want 0 run -d -q --name cli-l -- sh -c 'i=0; while sleep 0.2; do i=$((i+1)); echo line $i; done'
has cli-l out
want 5 casemate exec cli-l -- sh -c 'echo o; echo e >&2; exit 5'
[ "$(cat out err)" = "o
e" ] || fail "exec's output"
[ "$(echo piped | casemate exec -i cli-l -- cat)" = piped ] || fail "exec -i"
mkdir -p tree/sub; echo deep > tree/sub/file; head -c 400000 /dev/urandom > big
want 0 casemate cp big cli-l:/tmp
want 0 casemate cp tree cli-l:/opt/new
want 0 casemate exec cli-l -- cat /opt/new/sub/file
has deep out
want 0 casemate cp cli-l:/tmp/big back
cmp big back || fail "cp there and back"
want 0 casemate cp cli-l:/opt/new .
cmp tree/sub/file new/sub/file || fail "a tree there and back"
want 125 casemate cp cli-l:/no/such .
eventually sh -c 'casemate logs cli-l | grep -q "line 3"'
want 0 casemate logs -n 1 cli-l
[ $(wc -l < out) = 1 ] || fail "logs -n 1"
want 0 casemate pause cli-l
want 125 casemate exec cli-l -- true
has resume err
want 0 casemate resume cli-l
want 0 casemate exec cli-l -- true
want 0 casemate inspect --attest cli-l
has "attested now" out
want 0 casemate logs --console cli-l
want 125 run --name cli-l -- true
has "in use" err
want 125 casemate rm cli-l
want 0 casemate stop -t 1s cli-l
want 0 casemate stop cli-l
want 0 casemate logs -f cli-l
has "line 1" out
want 0 casemate inspect cli-l
has exited out
want 0 casemate rm cli-l
want 125 casemate inspect cli-l
"#,
    )
    .map(drop)
}

fn hostile() -> Result<(), Failed> {
    script(
        r#"
want 0 run -d -q --name cli-h -- sleep 1000
script -qec "casemate exec cli-h -- printf '\\033]0;owned\\007\\302\\233x'" /dev/null > out
grep -q "$(printf '\033')" out && fail "an escape sequence got through"
has '^[]0;owned^G<U+009B>x' out
casemate exec cli-h -- printf '\033x' > out
has "$(printf '\033x')" out
want 0 casemate exec cli-h -- sh -c 'mkdir /e; cd /e; ln -s /etc/passwd a; ln -s ../.. b; ln -s x/../.. c; mknod d c 1 3; mkfifo f; echo ok > ok; ln ok hard; ln -s ok good; chmod 4755 ok'
want 0 casemate cp cli-h:/e got
[ "$(ls got | tr '\n' ' ')" = "good hard ok " ] || fail "$(ls -l got)"
[ "$(stat -c %a got/ok)" = 755 ] || fail "a set-uid bit"
has "left out" err
want 125 casemate cp --max-size 1M cli-h:/dev/zero .
want 0 casemate exec cli-h -- dd if=/dev/zero of=/big bs=1M count=3
want 125 casemate cp --max-size 1M cli-h:/big .
has "limit" err
want 0 casemate rm -f cli-h
"#,
    )
    .map(drop)
}

fn attack() -> Result<(), Failed> {
    script(
        r#"
for vm in cli-a cli-b; do
    truncate -s 8M $vm.img; ls -Z $vm.img > before.$vm
    want 0 run -d -q --name $vm --disk id=data,path=$vm.img,format=raw -- sleep 1000
done
want 0 casemate ps
[ $(grep -c enforced out) -ge 2 ] || fail "two postures"
pair() { casemate inspect --format json $1 | grep '"categories"'; }
[ "$(pair cli-a)" != "$(pair cli-b)" ] || fail "the same pair"
ls -Z cli-a.img | grep -q casemate_image_t || fail "the image has its pair"
want 0 casemate attack cli-a cli-b
has "read the own disk" out
has "all as they must be" out
want 0 casemate rm -f cli-a cli-b
for vm in cli-a cli-b; do ls -Z $vm.img | cmp - before.$vm || fail "the label is not back"; done
want 0 casemate selftest
has "all as they must be" out
"#,
    )
    .map(drop)
}

fn killed() -> Result<(), Failed> {
    script(
        r#"
for t in 0.05 0.5 2 6; do
    casemate run $ROOT --name cli-k -q -- sleep 100 >out 2>err & p=$!
    sleep $t; kill -9 $p; wait $p 2>/dev/null
    eventually sh -c '! casemate ps -q | grep -qx cli-k'
    casemate repair >out 2>err || fail "repair after $t"
    # A start that lost its client may still be undoing itself.
    eventually sh -c '[ ! -e /run/casemate/vms/cli-k ] || casemate rm cli-k'
done
truncate -s 8M d.img; ls -Z d.img > before
want 0 run -d -q --name cli-k --disk id=data,path=d.img,format=raw -- sleep 1000
kill -9 $(casemate inspect --format json cli-k | grep -A1 '"warden"' | grep -o '[0-9][0-9]*')
eventually sh -c 'casemate ps | grep -q lost'
want 125 casemate rm -f cli-k
want 0 casemate repair
has "cli-k: repaired" out
has "restored" out
ls -Z d.img | cmp - before || fail "the label is not back"
want 0 casemate rm cli-k
want 0 casemate repair
[ ! -e /sys/fs/cgroup/casemate/cli-k ] || fail "a cgroup is left"
"#,
    )
    .map(drop)
}
