//! Other families' types for the runner, and tp-libvirt's sVirt matrix over our options, on a host that enforces.

use libtest_mimic::{Failed, Trial};

use crate::{cli::script, l1};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(name, move || l1::patiently(run));
    vec![
        trial("svirt_05: profiles: two guests in libvirt's types are apart, and every attack is denied", svirt),
        trial("svirt_05_14: profiles: a guest in the containers' types", container),
        trial(
            "svirt_05_06: profiles: what the policy's files name is what is used, and what is wrong there is told",
            files,
        ),
        trial("svirt_05_54: profiles: a caller that lacks a rule is told which", missing_rule),
        trial("svirt_54: profiles: without root the answer is clear", rootless),
        trial("svirt_56: tp-libvirt's matrix: levels, labels and relabel, good and bad", matrix),
    ]
}

const TOOLS: &str = r#"
fail() { echo "FAILED: $*"; cat out err 2>/dev/null | tail -20; casemate ps -aq | grep '^pr-' | xargs -r casemate rm -f >/dev/null 2>&1; exit 1; }
field() { grep -o "\"$1\": *\(\"[^\"]*\"\|[a-z0-9]*\)" | sed 's/^[^:]*: *//; s/"//g'; }
is() { case "$1" in $2) ;; *) fail "$1 is not $2" ;; esac; }
ours() { casemate inspect --format json $1 | grep -A1 '"runner"' | grep -o '"pid": *[0-9]*' | grep -o '[0-9]*'; }
label_of() { tr -d '\0' < /proc/$1/attr/current; }
casemate ps -aq | grep '^pr-' | xargs -r casemate rm -f >/dev/null 2>&1
"#;

fn hold(body: &str) -> Result<(), Failed> {
    script(&format!("{TOOLS}{body}")).map(drop)
}

fn svirt() -> Result<(), Failed> {
    hold(
        r#"
want 0 casemate plan --selinux-profile svirt $ROOT -- true
has "SELinux profile svirt: it was asked for" out; has "runner svirt_t, images svirt_image_t, content virt_content_t" out
has "posture enforced" out; has "categories do not hold back" out
for vm in pr-a pr-b; do
    truncate -s 8M $vm.img; stat -c %C $vm.img > $vm.before
    want 0 run -d -q --name $vm --selinux-profile svirt --require enforced --disk id=d,path=$PWD/$vm.img,format=raw -- sleep 1000
    p=$(ours $vm); is "$(label_of $p)" '*:svirt_t:s0:c*'; label_of $p >> labels; echo >> labels
    is "$(stat -c %C $vm.img)" "*:svirt_image_t:$(label_of $p | cut -d: -f4-)"
    want 0 casemate inspect --attest --format json $vm; is "$(field profile < out)" svirt
    grep '"ok": *false' out && fail "a finding of $vm"
done
[ "$(sort -u labels | grep -c svirt_t)" = 2 ] || fail "$(cat labels)"
casemate attack --format json pr-a pr-b > table || fail "$(cat table)"
[ "$(field ok < table | grep -c false)" = 0 ] || fail "$(cat table)"
n=$(sed '/"controls"/,$d' table | field all | grep -c allowed); [ $n = 0 ] || fail "$n attacks are allowed"
n=$(sed '/"controls"/,$d' table | field selinux | grep -vc allowed); [ $n -ge 3 ] || fail "SELinux alone denies $n only: $(cat table)"
# one of our own family beside them reads the same kernel and root
want 0 run --rm -q --name pr-c -- true
want 0 casemate exec pr-a -- cat /etc/passwd
want 0 casemate rm -f pr-a pr-b
for vm in pr-a pr-b; do stat -c %C $vm.img | cmp - $vm.before || fail "$vm: $(stat -c %C $vm.img)"; done
"#,
    )
}

fn container() -> Result<(), Failed> {
    hold(
        r#"
# Debian's lxc_contexts has no kvm_process: container-selinux' name for it is taken, and validated
want 0 run --rm --name pr-k --selinux-profile container --require enforced -- true
has "posture enforced (selinux container c" err; has "container_kvm_t may do more" err
"#,
    )
}

/// The files are root's to edit; each edit is taken back.
fn files() -> Result<(), Failed> {
    hold(
        r#"
at=/etc/selinux/default/contexts; cp -a $at saved
back() { cp saved/virtual_domain_context saved/virtual_image_context saved/lxc_contexts $at/; }
fail() { echo "FAILED: $*"; cat out err 2>/dev/null | tail -20; back; exit 1; }
refused() { want 125 casemate plan --selinux-profile svirt $ROOT -- true; has "SELinux profile svirt was asked for and cannot be used" out; has "$1" out
    want 125 run --rm -q --name pr-x --selinux-profile svirt --allow-reduced test -- true; has "$1" err; back; }
echo system_u:system_r:nosuch_t:s0 > $at/virtual_domain_context; refused "the policy lacks nosuch_t"
echo svirt_t > $at/virtual_domain_context; refused "virtual_domain_context:1: context"
echo system_u:system_r:svirt_t:s0 >> $at/virtual_domain_context; echo system_u:system_r:nosuch_t:s0 >> $at/virtual_domain_context; refused "virtual_domain_context:3: a third context"
printf 'system_u:system_r:svirt_t:s0\nsystem_u:system_r:svirt_tcg_t:s0\n' > $at/virtual_domain_context; refused "system_u:system_r:svirt_tcg_t:s0, which the kernel refuses"
rm $at/virtual_image_context; refused "virtual_image_context does not exist"
# a type that is there but is not held back by categories
echo unconfined_u:unconfined_r:unconfined_t:s0 > $at/virtual_domain_context; refused "categories do not separate it"
# one that is held back, and that the caller's role may not have
echo system_u:system_r:qemu_t:s0 > $at/virtual_domain_context; refused "the role unconfined_r may not have the type qemu_t"
grep -v ro_file saved/lxc_contexts > $at/lxc_contexts
want 125 casemate plan --selinux-profile container $ROOT -- true; has "has no 'ro_file'" out; back
want 0 casemate plan --selinux-profile svirt $ROOT -- true
"#,
    )
}

/// The jailer in its caller's domain, as on a host without our module's transition.
fn missing_rule() -> Result<(), Failed> {
    hold(
        r#"
cp /usr/libexec/casemate/* /usr/bin/casemate . ; chcon -t bin_t casemate*
lacks() { want 125 ./casemate plan --selinux-profile svirt $ROOT -- true; has "SELinux profile svirt was asked for and cannot be used" out; has "$1" out; }
lacks "(allow unconfined_t svirt_t (process (transition))"
lacks "(allow svirt_t bin_t (file (entrypoint))"
# the entry that libvirt's policy knows: one rule less is missing, and the start still says no before it does anything
chcon -t qemu_exec_t casemate-runner
lacks "(allow unconfined_t svirt_t (process (transition))"; grep -qF "(file (entrypoint" out && fail "qemu_exec_t is an entry of svirt_t"
want 125 ./casemate run --rm -q --name pr-x --selinux-profile svirt --allow-reduced test $ROOT -- true; has "(allow unconfined_t svirt_t (process (transition))" err
[ -z "$(ls /run/casemate/vms | grep pr-x)" ] || fail "something is left"
"#,
    )
}

fn rootless() -> Result<(), Failed> {
    hold(
        r#"
chmod 755 $dir; cd /
unroot() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
unroot casemate run --root tar:/var/lib/testbed/guest-rootfs-tiny.tar -- true > $dir/out 2> $dir/err && fail "it ran"
cd $dir; has root err
for profile in svirt container; do
    (cd /; unroot casemate run --selinux-profile $profile --root tar:/var/lib/testbed/guest-rootfs-tiny.tar -- true) >out 2>err && fail "it ran"
    has root err
done
"#,
    )
}

/// svirt_start_destroy, selinux_seclabel_overall_domain, selinux_seclabel_per_device, label_restore_rules, on_failed_start:
/// each row is a label on the disk before, our options, and what must come of it. Refusals are before any guest runs.
fn matrix() -> Result<(), Failed> {
    hold(
        r#"
row() { # NAME EXIT WORD DISK-LABEL DURING AFTER OPTIONS... ; '-' where it does not matter
    name=$1 code=$2 word=$3 before=$4 during=$5 after=$6 disk=$7; shift 7
    rm -f d.img; truncate -s 8M d.img; chcon "$before" d.img || fail "$name: chcon $before"; [ "$after" = same ] && after=$(stat -c %C d.img)
    run -d -q --name pr-m --disk id=d,path=$PWD/d.img,format=raw$disk "$@" -- sleep 1000 >out 2>err </dev/null; got=$?
    [ $got = $code ] || fail "$name: status $got instead of $code"
    [ "$word" = - ] || has "$word" err
    if [ $got = 0 ]; then
        p=$(ours pr-m); pair=$(label_of $p | cut -d: -f4-)
        [ "$during" = - ] || is "$(stat -c %C d.img)" "$(echo "$during" | sed "s/PAIR/$pair/")"
        casemate rm -f pr-m >out 2>err || fail "$name: rm"
    fi
    [ "$after" = - ] || is "$(stat -c %C d.img)" "$after"
    echo "row $name: $got" >> rows
}
plain=system_u:object_r:user_tmp_t:s0
good=system_u:object_r:casemate_image_t:s0:c7,c9
other=system_u:object_r:casemate_image_t:s0:c1,c2
# the whole domain: dynamic, static, with and without relabelling
row dynamic            0   -        $plain '*:casemate_image_t:PAIR' same ''
row static             0   -        $plain '*:casemate_image_t:s0:c7,c9' same '' --selinux-level s0:c7,c9
row static-keep        0   -        $good  '*:casemate_image_t:s0:c7,c9' same '' --selinux-level s0:c7,c9 --no-relabel
row static-keep-other  125 d.img    $other - same '' --selinux-level s0:c7,c9 --no-relabel
row static-keep-plain  125 d.img    $plain - same '' --selinux-level s0:c7,c9 --no-relabel
row static-canonical   0   -        $plain '*:casemate_image_t:s0:c7,c9' same '' --selinux-level s0:c9,c7
row dynamic-keep       125 relabel  $plain - same '' --no-relabel
row garbage-level      125 level    $plain - same '' --selinux-level c7,c9
row unknown-level      125 level    $plain - same '' --selinux-level s0:c7,c2000
row unknown-sens       125 -        $plain - same '' --selinux-level s9:c7,c9
# one device: its own label, good and bad
row device-good        0   -        $plain "$good" same ",label=$good" --selinux-level s0:c7,c9
row device-foreign     125 d.img    $plain - same ",label=$other" --selinux-level s0:c7,c9
row device-other-type  125 d.img    $plain - same ",label=system_u:object_r:virt_image_t:s0:c7,c9" --selinux-level s0:c7,c9
row device-garbage     125 label    $plain - same ",label=svirt_image_t"
row device-nosuch      125 nosuch_t $plain - same ",label=system_u:object_r:nosuch_t:s0:c7,c9" --selinux-level s0:c7,c9
row device-keep-good   0   -        $good  "$good" same ,relabel=no --selinux-level s0:c7,c9
row device-keep-bad    125 d.img    $plain - same ,relabel=no --selinux-level s0:c7,c9
# what is given back, by access: exclusive as it was, content and shared too, once nobody holds it
row restore-ro         0   -        $plain '*:casemate_content_t:s0' same ,ro
row restore-shared     0   -        $plain '*:casemate_image_t:s0' same ,shared
# another manager's private label, and a start that fails after the disk was labelled
row foreign-svirt      125 d.img    system_u:object_r:svirt_image_t:s0:c1,c2 - same ''
row foreign-svirt-same 125 d.img    system_u:object_r:svirt_image_t:s0:c1,c2 - same '' --selinux-profile svirt
row failed-start       125 -        $plain - same ,ro --disk id=e,path=/nonexistent,format=raw
[ "$(wc -l < rows)" = 22 ] || fail "$(cat rows)"
# the host's mode: permissive is never enforced, and says so
setenforce 0
run -d -q --name pr-m --disk id=d,path=$PWD/d.img,format=raw -- sleep 1000 >out 2>err; got=$?; setenforce 1
[ $got = 125 ] || fail "permissive: $got"; has permissive err
[ -z "$(ls /run/casemate/leases/mcs | grep -v :)" ] || fail "a lease is left"
"#,
    )
}
