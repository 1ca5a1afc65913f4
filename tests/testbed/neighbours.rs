//! Beside libvirt and podman: nobody takes another's pair, nobody's labels are disturbed, files in use are refused.
//! In an L1 of its own (testbed/variants/neighbours) with both daemons' packages; `payload/neighbours.sh` starts them
//! in their own domains, as a service manager would.
//!
//! libvirt's guests are paused QEMU processes: their labels are there from the start, and no instruction of a guest is
//! needed for them. podman's container sleeps.

use std::sync::OnceLock;

use libtest_mimic::{Failed, Trial};

use crate::{cli, cli::script, l1};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| {
        Trial::test(name, move || l1::beside_others(|| ready().and_then(|()| l1::patiently(run))))
    };
    vec![
        trial("svirt_10_38: neighbours: libvirt, podman and two sandboxes, in both orders", four_at_once),
        trial("svirt_15: neighbours: sandboxes in libvirt's and the containers' own types beside them", same_types),
        trial(
            "svirt_09_10: neighbours: a level that others hold or have reserved is refused, a later one is seen",
            collisions,
        ),
        trial("svirt_31_38: neighbours: a disk in use is refused, theirs by us and ours by libvirt", disks_in_use),
    ]
}

/// libvirt and podman, once. libvirt's first guest waits until it has asked QEMU for its capabilities.
fn ready() -> Result<(), Failed> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    cli::ready()?;
    let start = || {
        l1::push(&[l1::repo().join("tests/testbed/payload/neighbours.sh")], "/usr/local/sbin/")?;
        for part in ["libvirt", "podman"] {
            let out = l1::sh(Some("initrc_t"), &format!("sh /usr/local/sbin/neighbours.sh {part} 2>&1"))?;
            if !out.status.success() {
                return Err(format!("{part}: {}", String::from_utf8_lossy(&out.stdout)));
            }
        }
        Ok(())
    };
    DONE.get_or_init(start).clone().map_err(Failed::from)
}

/// `libvirt NAME [SECLABEL-XML] [DISK]` and `podman_up NAME [OPTION…]` start one each; `pair_of PID` prints its categories.
/// `theirs NAME` and `container NAME` print the pid. podman lives in its service's domain, so it is entered from a
/// service's; all of it goes away with `gone`, on failure too.
const TOOLS: &str = r#"
gone() {
    casemate ps -aq | grep '^nb-' | xargs -r casemate rm -f >/dev/null 2>&1
    for d in $(virsh list --name --all 2>/dev/null); do virsh destroy $d; virsh undefine $d; done >/dev/null 2>&1
    service podman rm -af -t 0 >/dev/null 2>&1
    rm -f $images/nb-*.img
}
fail() { echo "FAILED: $*"; cat out err 2>/dev/null | tail -20; gone; exit 1; }
# podman_t may write to its service's pipe and not to its service's files
service() { runcon system_u:system_r:initrc_t:s0 /bin/sh -c '{ "$@" 2>&1 </dev/null; echo $? >/tmp/service.rc; } | cat >/tmp/service.out' sh "$@"; cat /tmp/service.out; return $(cat /tmp/service.rc); }
images=/var/lib/libvirt/images
libvirt() {
    name=$1; label=${2:-}; disk=${3:-$images/$name.img}
    [ -e $disk ] || { truncate -s 1M $disk; restorecon $disk; }
    [ -e $images/cd.img ] || { truncate -s 1M $images/cd.img; restorecon $images/cd.img; }
    cat > $name.xml <<END
<domain type='kvm'><name>$name</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='$disk'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='$images/cd.img'/><target dev='vdb' bus='virtio'/><readonly/></disk>
<controller type='usb' model='none'/><memballoon model='none'/></devices>$label</domain>
END
    virsh -q create $name.xml --paused
}
static() { echo "<seclabel type='static' model='selinux' relabel='yes'><label>system_u:system_r:svirt_t:$1</label></seclabel>"; }
podman_up() { name=$1; shift; service podman run -d --name $name --network none --cgroups disabled "$@" localhost/tiny /bin/busybox sleep 10000; }
theirs() { cat /run/libvirt/qemu/$1.pid; }
container() { service podman inspect -f '{{.State.Pid}}' $1; }
ours() { casemate inspect --format json $1 | grep -A1 '"runner"' | grep -o '"pid": *[0-9]*' | grep -o '[0-9]*'; }
label_of() { tr -d '\0' < /proc/$1/attr/current; }
pair_of() { label_of $1 | sed 's/.*://'; }
xattrs() { getfattr -d -m '^(security|trusted)' "$@" 2>/dev/null; }
apart() { [ $(for p in "$@"; do echo $p | tr ',' '\n' | grep -c '^c'; done | sort -u) = 2 ] || fail "not pairs: $*"
    [ $(printf '%s\n' "$@" | sort -u | wc -l) = $# ] || fail "a pair is shared: $*"; }
is() { case "$1" in $2) ;; *) fail "$1 is not $2" ;; esac; }
disks=$PWD
sandbox() { name=$1; shift; truncate -s 8M $disks/$name.img; want 0 run -d -q --name $name --disk id=d,path=$disks/$name.img,format=raw "$@" -- sleep 1000; }
mkdir -p $images
gone
"#;

fn beside(body: &str) -> Result<(), Failed> {
    script(&format!("{TOOLS}{body}\ngone")).map(drop)
}

fn four_at_once() -> Result<(), Failed> {
    beside(
        r#"
mkdir -p $images; truncate -s 1M $images/nb-l.img $images/cd.img; restorecon -F $images/*.img
xattrs $images/nb-l.img > lv.before
# one of ours, then theirs, then another of ours: both orders at once
sandbox nb-a
want 0 libvirt nb-l; want 0 podman_up nb-c
sandbox nb-b
a=$(ours nb-a); b=$(ours nb-b); l=$(theirs nb-l); c=$(container nb-c)
is "$(label_of $a)" '*:casemate_runner_t:s0:c*'; is "$(label_of $b)" '*:casemate_runner_t:s0:c*'
is "$(label_of $l)" 'system_u:system_r:svirt_t:s0:c*'; is "$(label_of $c)" 'system_u:system_r:container_t:s0:c*'
apart $(pair_of $a) $(pair_of $b) $(pair_of $l) $(pair_of $c)
root=$(service podman inspect -f '{{.GraphDriver.Data.Dir}}{{.Rootfs}}' nb-c); [ -d "$root" ] || root=$(ls -d /var/lib/containers/storage/vfs/dir/* | head -1)
snapshot() {
    for p in $a $b $l $c; do echo $p $(label_of $p); done
    xattrs --absolute-names $PWD/nb-a.img $PWD/nb-b.img $images/nb-l.img $images/cd.img "$root" "$root/bin/busybox"
}
snapshot > all; cp all all.first
grep -q 'trusted.libvirt.security.selinux' all || fail "libvirt remembers nothing: $(cat all)"
grep -q "svirt_image_t:s0:$(pair_of $l)" all || fail "libvirt's disk: $(cat all)"
for vm in nb-a nb-b; do casemate inspect --attest --format json $vm > record || fail "$(cat record)"; grep '"ok": *false' record && fail "a finding of $vm"; done
# one after the other goes, and for those who stay all is as it was
keep() { p=$1; shift; for f; do grep -v "^$p " $f > $f.n; mv $f.n $f; done; }
want 0 casemate stop -t 1s nb-a; want 0 casemate rm nb-a
stays() { for p in "$@"; do grep -qx "$p $(label_of $p)" all.first || fail "$p has another label: $(label_of $p)"; done; }
stays $b $l $c
xattrs $images/nb-l.img > lv.during; want 0 virsh destroy nb-l; stays $b $c
xattrs $images/nb-l.img | cmp - lv.before || fail "libvirt did not restore: $(xattrs $images/nb-l.img)"
xattrs --absolute-names $PWD/nb-b.img | grep -q "casemate_image_t:s0:$(pair_of $b)" || fail "our disk: $(xattrs nb-b.img)"
want 0 service podman rm -f -t 0 nb-c; stays $b
# theirs is back first, ours after
want 0 libvirt nb-l; want 0 podman_up nb-c; sandbox nb-a; l=$(theirs nb-l); c=$(container nb-c); a=$(ours nb-a)
apart $(pair_of $a) $(pair_of $b) $(pair_of $l) $(pair_of $c)
xattrs $images/nb-l.img > lv.mid
want 0 casemate kill nb-a; want 0 casemate rm -f nb-a nb-b; want 0 casemate repair
xattrs $images/nb-l.img | cmp - lv.mid || fail "our end and repair touched libvirt's disk"
is "$(label_of $l)" 'system_u:system_r:svirt_t:s0:c*'; is "$(label_of $c)" 'system_u:system_r:container_t:s0:c*'
for vm in nb-a nb-b; do xattrs $vm.img | grep -q 'casemate' && fail "something of ours is left: $(xattrs $vm.img)"; done; true
"#,
    )
}

/// The family's types are its managers' too: only categories are left, and the records of all sides.
fn same_types() -> Result<(), Failed> {
    beside(
        r#"
want 0 libvirt nb-l; want 0 podman_up nb-c
sandbox nb-s --selinux-profile svirt; sandbox nb-k --selinux-profile container
s=$(ours nb-s); k=$(ours nb-k); l=$(theirs nb-l); c=$(container nb-c)
is "$(label_of $s)" '*:svirt_t:s0:c*'; is "$(label_of $k)" '*:container_kvm_t:s0:c*'
apart $(pair_of $s) $(pair_of $k) $(pair_of $l) $(pair_of $c)
is "$(stat -c %C nb-s.img)" "*:svirt_image_t:s0:$(pair_of $s)"; is "$(stat -c %C nb-k.img)" "*:container_file_t:s0:$(pair_of $k)"
xattrs $images/nb-l.img > before
for vm in nb-s nb-k; do casemate inspect --attest --format json $vm > record || fail "$(cat record)"; grep '"ok": *false' record && fail "a finding of $vm"; done
want 0 casemate exec nb-s -- sh -c 'echo mark > /dev/vdb'; [ "$(head -c 4 nb-s.img)" = mark ] || fail "the guest cannot write to its disk"
want 0 casemate rm -f nb-s nb-k
is "$(stat -c %C nb-s.img)" '*:user_tmp_t:s0'
xattrs $images/nb-l.img | cmp - before || fail "libvirt's disk was touched"
is "$(label_of $l)" 'system_u:system_r:svirt_t:s0:c*'; is "$(label_of $c)" 'system_u:system_r:container_t:s0:c*'
"#,
    )
}

/// Static labels are what libvirt itself never reserves.
fn collisions() -> Result<(), Failed> {
    beside(
        r#"
taken() { want 125 run --rm -q --name nb-x --selinux-level "$1" -- true; has "$2" err; }
# running under libvirt, and in a container; also a part of a pair, and more than it
want 0 libvirt nb-l "$(static s0:c7,c9)"; want 0 podman_up nb-c --security-opt label=level:s0:c20,c21
is "$(label_of $(theirs nb-l))" '*:svirt_t:s0:c7,c9'; is "$(label_of $(container nb-c))" '*:container_t:s0:c20,c21'
taken s0:c7,c9 c7,c9; taken s0:c9 c7,c9; taken s0:c7,c9,c11 c7,c9; taken s0:c20,c21 c20,c21
want 0 virsh destroy nb-l
want 0 run --rm -q --name nb-x --selinux-level s0:c7,c9 -- true
# defined only: it may be started at any time
libvirt nb-d "$(static s0:c30,c31)" >out 2>err || fail create; want 0 virsh destroy nb-d; want 0 virsh define nb-d.xml
taken s0:c30,c31 libvirt
# stopped, not removed: its files carry the level
want 0 service podman stop -t 0 nb-c; taken s0:c20,c21 c20,c21
# we first, then libvirt, which asks nobody: the auditor sees it at once
want 0 run -d -q --name nb-a --selinux-level s0:c50,c51 -- sleep 1000
want 0 casemate inspect --attest nb-a
want 0 libvirt nb-l "$(static s0:c50,c51)"
casemate inspect --attest --format json nb-a > record && fail "a shared level is not a finding"
has "$(theirs nb-l) (system_u:system_r:svirt_t:s0:c50,c51)" record
want 0 virsh destroy nb-l; want 0 casemate inspect --attest nb-a
"#,
    )
}

fn disks_in_use() -> Result<(), Failed> {
    beside(
        r#"
want 0 libvirt nb-l; xattrs $images/nb-l.img > before
want 125 run --rm -q --name nb-x --disk id=d,path=$images/nb-l.img,format=raw -- true
has "in use by QEMU" err
xattrs $images/nb-l.img | cmp - before || fail "a refused disk was touched"
want 0 virsh destroy nb-l
# and ours, by libvirt, whose start fails before it changes a label: virtd_t may not touch our types, and where it may,
# in its own types, it cannot take its lock
disks=$images; disk=$images/nb-a.img
for row in casemate:Permission svirt:lock; do
    rm -f $disk; sandbox nb-a --selinux-profile ${row%:*}; xattrs $disk > before
    want 1 libvirt nb-m "" $disk; has ${row#*:} err
    xattrs $disk | cmp - before || fail "libvirt relabelled a disk in use: $(xattrs $disk)"
    want 0 casemate exec nb-a -- sh -c 'echo mark > /dev/vdb; sync'; [ "$(head -c 4 $disk)" = mark ] || fail "the guest lost its disk"
    want 0 casemate inspect --attest nb-a; want 0 casemate rm -f nb-a
done
# given back, it is anybody's again
want 0 libvirt nb-m "" $disk
"#,
    )
}
