//! What SELinux's state does to sandboxes that start and to those that run: each state of the host has its own sentence,
//! a start that could not work is refused before it is tried, and a policy that changes is noticed, said and acted on.
//!
//! Policies other than ours are compiled on this machine (`testbed policy --check`), so that L1 only has to load them.

use std::sync::OnceLock;

use libtest_mimic::{Failed, Trial};

use crate::{cli::script, l1};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(name.to_owned(), move || l1::patiently(run));
    vec![
        trial("svirt_51: each state of the host has its own sentence, and none but one is enforced", states),
        trial("svirt_39: a covered procfs or selinuxfs is refused, not believed", covered),
        trial("svirt_40_41: a transition that cannot be is told with its remedy before it is tried", transitions),
        trial("svirt_44_45: the label is attested from outside, the parent's attributes are clear", attested),
        trial("svirt_52: warn: noticed, shown, recorded, and over when it is over; a harmless reload is none", warned),
        trial("svirt_52: pause: held until it separates or that is accepted", paused),
        trial("svirt_52: stop: the guest is asked, then ended; the record says why", stopped),
        trial("svirt_52: a permissive domain, a boolean, a hundred changes", other_changes),
    ]
}

/// Compiled policies that are not ours, in L1's /root/policies; loaded by `policy NAME`.
fn variants() -> Result<(), Failed> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let all = [
        ("permissive-domain", "(typepermissive casemate_runner_t)"),
        ("no-nosuid", "(deny casemate_jailer_t casemate_runner_t (process2 (nosuid_transition)))"),
    ];
    DONE.get_or_init(|| {
        l1::sh(None, "mkdir -p /root/policies; cp /etc/selinux/default/policy/policy.33 /root/policies/ours")?;
        all.iter().try_for_each(|(name, rule)| l1::push_policy(name, Some(rule)))?;
        l1::push_policy("none", None)
    })
    .clone()
    .map_err(Failed::from)
}

const TOOLS: &str = r#"
policy() { cp /root/policies/$1 /etc/selinux/default/policy/policy.33 && load_policy; }
back() { setenforce 1; [ -e /root/policies/ours ] && ! cmp -s /root/policies/ours /etc/selinux/default/policy/policy.33 && policy ours; restorecon /usr/libexec/casemate/* /usr/bin/casemate; casemate ps -aq | grep '^mo-' | xargs -r casemate rm -f >/dev/null 2>&1; true; }
trap back EXIT
says() { casemate doctor > out 2>err; has "$1" out; grep -q "has the posture 'enforced'" out && fail "it is called enforced: $1"; true; }
shows() { n=0; until casemate ps | grep -q -- "$1 .*$2"; do n=$((n+1)); [ $n -lt 100 ] || { casemate ps; fail "$1 is never $2"; }; sleep 0.1; done; }
in_mounts() { unshare -m sh -c "$1"; }
"#;

fn modes(body: &str) -> Result<(), Failed> {
    script(&format!("{TOOLS}{body}")).map(drop)
}

fn states() -> Result<(), Failed> {
    variants()?;
    modes(
        r#"
casemate doctor > out; has "has the posture 'enforced'" out; has casemate_use_host_disks out; has deny_unknown out
setenforce 0; says "SELinux is permissive"; setenforce 1
policy permissive-domain; says "casemate_runner_t is a permissive domain"
policy none; says "is not loaded"
policy ours
echo SELINUXTYPE=mls > config; in_mounts "mount --bind config /etc/selinux/config; casemate doctor" > out
has "SELINUXTYPE=mls" out
want 125 run --rm -q --disk id=d,path=/dev/vda,format=raw -- true; has casemate_use_host_disks err; has setsebool err
casemate doctor > out; has "has the posture 'enforced'" out
"#,
    )
}

fn covered() -> Result<(), Failed> {
    modes(
        r#"
in_mounts "mount -t tmpfs none /sys/fs/selinux; mkdir /sys/fs/selinux/booleans; echo 1 > /sys/fs/selinux/enforce; casemate doctor" > out
has "is not selinuxfs" out; grep -q "posture 'enforced'\|posture 'hardened'" out && fail "believed"
in_mounts "umount /sys/fs/selinux; casemate doctor" > out
has "not mounted" out; grep -q "has the posture 'enforced'\|has the posture 'hardened'" out && fail "called off"
jailer=/usr/libexec/casemate/casemate-jailer
in_mounts "setenforce 0; mount --bind /proc/1/sched /proc/\$\$/task/\$\$/attr/current; setenforce 1; exec $jailer facts" > out 2>err
has "something is mounted over" out
in_mounts "mount -t tmpfs none /proc; exec $jailer facts" > out 2>err; cat err >> out
has "not a procfs" out
"#,
    )
}

fn transitions() -> Result<(), Failed> {
    variants()?;
    modes(
        r#"
runner=/usr/libexec/casemate/casemate-runner
refused() { want 125 run --rm -q -- true; has "$1" err; has "$2" err; }
chcon -t bin_t $runner; refused "no entry point" restorecon
casemate plan $ROOT -- true > out 2>&1; has "no entry point" out
casemate doctor > out; has "no entry point" out
restorecon $runner
want 125 setpriv --no-new-privs casemate run $ROOT --rm -q -- true; has no_new_privs err; has NoNewPrivileges err
chcon -t bin_t /usr/libexec/casemate/casemate-jailer; refused "casemate_jailer_exec_t" restorecon
restorecon /usr/libexec/casemate/casemate-jailer
in_mounts "mount --bind /usr/libexec/casemate /usr/libexec/casemate; mount -o remount,bind,nosuid /usr/libexec/casemate; casemate doctor" > out
has nosuid out
in_mounts "mount --bind /usr/libexec/casemate /mnt; mount -o remount,bind,noexec /mnt; mount --bind /mnt/casemate-runner $runner; casemate doctor" > out
has noexec out
policy no-nosuid; refused "nosuid_transition" "policy install"
policy ours
want 0 run --rm -q --require enforced -- true
"#,
    )
}

fn attested() -> Result<(), Failed> {
    modes(
        r#"
want 0 run -d -q --name mo-a -- sleep 1000
casemate inspect --format json mo-a > st
warden=$(grep -A1 '"warden"' st | grep -o '[0-9]*' | head -1)
for a in exec fscreate sockcreate keycreate; do [ -z "$(tr -d '\0' < /proc/$warden/attr/$a)" ] || fail "the warden's $a is set"; done
has '"own attributes"' st
want 0 casemate inspect --attest mo-a
has casemate_runner_t out
"#,
    )
}

fn warned() -> Result<(), Failed> {
    variants()?;
    modes(
        r#"
want 0 run -d -q --name mo-w -- sleep 1000
shows mo-w "enforced "
load_policy; sleep 1
shows mo-w "enforced "
casemate inspect --format json mo-w > st
seq() { grep "\"$1\":" st | head -1 | tr -dc 0-9; }
[ $(seq seqno) -gt $(seq seqno_at_start) ] || fail "the reload was not noticed: $(seq seqno)"
grep -q '"history": \[\]' st || fail "a harmless reload is told"
setenforce 0; shows mo-w 'reduced\*'
casemate ps > out; has "posture enforced when it was started" out; has permissive out
casemate inspect mo-w > out; has "no longer separates" out
setenforce 1; shows mo-w "enforced "
casemate inspect mo-w > out; has "separates mo-w again" out
want 0 casemate exec mo-w -- true
want 0 casemate kill mo-w
grep -q 'no longer separates' /run/casemate/vms/mo-w/exit.json || fail "the record forgets it"
want 0 casemate rm mo-w
casemate run $ROOT -q --rm --name mo-w -- sleep 8 > out 2>err & pid=$!
shows mo-w running; setenforce 0; shows mo-w 'reduced\*'; setenforce 1
wait $pid || fail "warn ended it"
has "no longer separates mo-w" err; has "separates mo-w again" err
"#,
    )
}

fn paused() -> Result<(), Failed> {
    modes(
        r#"
want 0 run -d -q --require enforced --name mo-p -- sleep 1000
setenforce 0; shows mo-p 'paused .*reduced\*'
casemate resume mo-p > out 2>err && fail "it was resumed"
has "does not separate" err; has allow-reduced err
want 0 casemate resume --allow-reduced "a trial" mo-p; shows mo-p running
casemate inspect mo-p > out; has "a trial" out
setenforce 1; shows mo-p "running .*enforced "
setenforce 0; shows mo-p 'paused .*reduced\*'
setenforce 1; shows mo-p "paused .*enforced "
want 0 casemate resume mo-p; shows mo-p running
want 0 casemate exec mo-p -- true
want 0 casemate rm -f mo-p
"#,
    )
}

fn stopped() -> Result<(), Failed> {
    modes(
        r#"
casemate run $ROOT -q --on-policy-change stop --name mo-s -- sh -c 'trap "exit 5" TERM; echo up; while :; do sleep 0.2; done' > out 2>err & pid=$!
eventually grep -q up out
setenforce 0; wait $pid; code=$?; setenforce 1
[ $code = 125 ] || fail "status $code"
has "stopped separating" err; has permissive err
grep -q '"cause": *"policy_changed"' /run/casemate/vms/mo-s/exit.json || fail "$(cat /run/casemate/vms/mo-s/exit.json | tail -c 400)"
grep -q '"status": *5' /run/casemate/vms/mo-s/exit.json || fail "the workload was not asked: $(grep -o '"exit".*' /run/casemate/vms/mo-s/exit.json)"
want 0 casemate rm mo-s
casemate run $ROOT -q --on-policy-change stop --name mo-s -- sh -c 'trap "" TERM; echo up; while :; do sleep 1; done' > out 2>err & pid=$!
eventually grep -q up out
want 0 casemate pause mo-s; setenforce 0; wait $pid; setenforce 1
grep -q '"cause": *"policy_changed"' /run/casemate/vms/mo-s/exit.json || fail "a paused guest was not ended"
want 0 casemate rm mo-s
want 0 run --rm -q --require enforced -- true
"#,
    )
}

fn other_changes() -> Result<(), Failed> {
    variants()?;
    modes(
        r#"
want 0 run -d -q --name mo-o -- sleep 1000
policy permissive-domain; shows mo-o 'reduced\*'
casemate ps > out; has "permissive domain" out
policy ours; shows mo-o "enforced "
cd /sys/fs/selinux; n=0
while [ $n -lt 100 ]; do n=$((n+1)); echo $((n%2)) > booleans/casemate_use_host_disks; echo 1 > commit_pending_bools; done
cd $dir; sleep 1
shows mo-o "running .*enforced "
casemate inspect --format json mo-o > st
[ "$(grep '"changes":' st | tr -dc 0-9)" -lt 60 ] || fail "a question for each change: $(grep changes st)"
[ "$(grep '"seqno":' st | tr -dc 0-9)" -ge 100 ] || fail "the last change was not seen: $(grep seqno st)"
want 0 casemate exec mo-o -- true
want 0 casemate rm -f mo-o
"#,
    )
}
