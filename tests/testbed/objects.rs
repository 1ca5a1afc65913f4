//! Labels on objects, where SELinux enforces (issue 3, item 3): overrides, labels that are kept, file systems without
//! labels, what is refused, what an attacker does to names and links, huge pages. Each trial is one script in L1 (see
//! [`script`]); most starts are refused before a guest boots, so the whole takes about as long as its few guests.

use libtest_mimic::{Failed, Trial};

use crate::{cli::script, l1};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(name, move || l1::patiently(run));
    vec![
        trial(
            "svirt_21: a disk's own label is used if the policy lets this runner alone use it, else refused",
            overrides,
        ),
        trial("svirt_55: labels that are kept are checked, and the refusal's chcon mends it", kept),
        trial("svirt_23: file systems without labels are judged by what the policy allows", labelless),
        trial("svirt_22_25_28_29: links, devices, mounts and places that may not be labelled", attacks),
        trial("svirt_28: a block device's node is labelled and given back", block_device),
        trial("svirt_31_46: libvirt's lock byte is respected, the runner's sockets carry its label", lock_and_sockets),
        trial("svirt_24_26: nothing carries a labelled guest elsewhere: no migration, snapshot or dump", not_offered),
        trial("svirt_27: a restorecon over a running guest's image is noticed, and prevented", restorecon),
        trial("svirt_48: huge pages: the pool is asked, the memory has the pair's label, all comes back", hugepages),
    ]
}

/// `refused TEXT ARGS…`: a start that must fail with this text, and leave the label of $d as it was. `label_of FILE`.
/// `disk EXTRA`: a --disk option for the file $d.
const TOOLS: &str = r#"
label_of() { stat -c %C "$1"; }
refused() { text=$1; shift; was=$(label_of $d); want 125 run --rm -q "$@"; has "$text" err
    [ "$(label_of $d)" = "$was" ] || fail "a refused start left $(label_of $d) instead of $was"; }
disk() { echo "--disk id=d,path=$d,format=raw$1"; }
during() { casemate inspect --format json $1 | grep -o '"during": *"[^"]*disk[^"]*"\|"during": *"[^"]*"'; }
field() { grep -o "\"$1\": *\(\"[^\"]*\"\|[a-z0-9]*\)" | sed 's/^[^:]*: *//; s/"//g'; }
d=$PWD/d.img; truncate -s 8M $d
"#;

fn job(body: &str) -> Result<String, Failed> {
    script(&format!("{TOOLS}{body}"))
}

fn overrides() -> Result<(), Failed> {
    job(r#"
before=$(label_of $d)
own=system_u:object_r:casemate_image_t:s0:c900,c901
L="--selinux-level s0:c900,c901"
want 0 run -d -q --name cli-given $L $(disk ,label=$own) -- sleep 1000
[ "$(label_of $d)" = $own ] || fail "it carries $(label_of $d)"
want 0 casemate rm -f cli-given
[ "$(label_of $d)" = "$before" ] || fail "restored to $(label_of $d)"

refused "disks[0].label" $L $(disk ,label=system_u:object_r:casemate_image_t:s0:c900,c902) -- true
has "level is not this sandbox's" err; has "leave disks[0].label out" err
refused "disks[0].label" $(disk ,label=$own) -- true
refused "disks[0].label" $L $(disk ,label=system_u:object_r:casemate_image_t:s0) -- true
has "every other runner may use it too" err
refused "does not let a runner use that type" $L $(disk ,label=system_u:object_r:virt_image_t:s0:c900,c901) -- true
refused "does not let a runner use that type" $L $(disk ,label=system_u:object_r:etc_t:s0) -- true
refused "does not know" $L $(disk ,label=system_u:object_r:no_such_t:s0) -- true
refused "does not know" $L $(disk ,label=no_such_u:object_r:casemate_image_t:s0:c900,c901) -- true
refused "is not a label" $L $(disk ,label=casemate_image_t) -- true
refused "every other runner may write to it" $(disk ,ro,label=system_u:object_r:casemate_image_t:s0) -- true
refused "together with relabel" $(disk ,relabel=no,label=$own) -- true
"#)
    .map(drop)
}

fn kept() -> Result<(), Failed> {
    job(r#"
L="--selinux-level s0:c900,c901"
refused "leased only now" $(disk ,relabel=no) -- true
refused "leased only now" --no-relabel $(disk '') -- true
refused "disks[0].relabel" $L $(disk ,relabel=no) -- true
sed -n 's/.*; \(chcon .*d\.img\).*/\1/p' err > remedy; [ -s remedy ] || fail "no remedy"
sh -e ./remedy || fail "the remedy does not work: $(cat remedy)"
kept=$(label_of $d)
want 0 run --rm -q $L $(disk ,relabel=no) -- sh -c 'echo hi > /dev/vdb'
[ "$(label_of $d)" = $kept ] || fail "a kept label became $(label_of $d)"
[ "$(head -c 2 $d)" = hi ] || fail "the guest could not write"
# all objects: the kernel and the root image are content already
want 0 run --rm -q $L --no-relabel $(disk '') -- true
[ "$(label_of $d)" = $kept ] || fail "a kept label became $(label_of $d)"
# the same label for another sandbox: a foreign level
refused "level is not this sandbox's" --selinux-level s0:c902,c903 $(disk ,relabel=no) -- true

chcon system_u:object_r:casemate_image_t:s0 $d
refused "every other runner may use it too" $L $(disk ,relabel=no) -- true
refused "every other runner may write to it" $(disk ,ro,relabel=no) -- true
want 0 run --rm -q $(disk ,shared,relabel=no) -- true
chcon -t tmp_t $d
refused "disks[0].relabel" $(disk ,ro,relabel=no) -- true
has "chcon system_u:object_r:casemate_content_t:s0 $d" err
chcon system_u:object_r:casemate_content_t:s0 $d
want 0 run --rm -q $(disk ,ro,relabel=no) -- head -c 2 /dev/vdb
has hi out
"#)
    .map(drop)
}

/// FAT has no mkfs in L1: a boot sector and the head of its table are enough for an empty one.
fn labelless() -> Result<(), Failed> {
    job(r#"
modprobe -a loop vfat
truncate -s 32M fat.img
at() { dd of=fat.img bs=1 seek=$1 conv=notrunc 2>/dev/null; }
printf '\353\074\220MSWIN4.1\000\002\010\001\000\001\000\002\000\000\370\040\000\077\000\377\000\000\000\000\000\000\000\001\000' | at 0
printf '\125\252' | at 510
printf '\370\377\377\377' | at 512
mkdir mnt; mnt=$PWD/mnt
end() { setsebool casemate_use_dosfs off; umount $mnt 2>/dev/null; }
trap end EXIT
remount() { umount $mnt 2>/dev/null; mount "$@" || fail "mount $*"; d=$mnt/d.img; [ -e $d ] || truncate -s 1M $d; }
L="--selinux-level s0:c900,c901"

# genfs: one type for all, and nobody let us in
remount -t vfat -o loop fat.img $mnt
case $(label_of $d) in *:dosfs_t:s0) ;; *) fail "not the genfs label: $(label_of $d)" ;; esac
for how in '' ,ro ,shared; do refused dosfs_t $(disk "$how") -- true; has "setsebool casemate_use_dosfs on" err; done

# the administrator lets every runner in: used, said, and the posture counts what this VM alone should write
setsebool casemate_use_dosfs on
want 0 run --rm --require enforced $(disk ,ro) -- head -c 1 /dev/vdb
has "no per-VM separation on $d" err; has "posture enforced" err
refused "no per-VM separation on $d" $(disk '') -- true
has "--allow-reduced" err
refused "posture enforced is required" --require enforced --allow-reduced "a test" $(disk '') -- true
want 0 run -d --name cli-fat --allow-reduced "a test" $(disk '') -- sh -c 'echo hi > /dev/vdb; sleep 1000'
casemate inspect --format json cli-fat > record
has "no per-VM separation on $d" record
[ "$(field posture < record | sort -u)" = reduced ] || fail "not reduced"
casemate ps --format json > ps; has '"reduced"' ps
want 0 casemate rm -f cli-fat
refused "Operation not supported" --allow-reduced x $(disk ,label=system_u:object_r:casemate_image_t:s0,shared) -- true
setsebool casemate_use_dosfs off

# context=: the mount's label is judged, nothing can be set
remount -t vfat -o loop,context=system_u:object_r:casemate_content_t:s0 fat.img $mnt
want 0 run --rm --require enforced -q $(disk ,ro) -- true
refused "does not let this runner use" $(disk '') -- true
has 'context="system_u:object_r:casemate_image_t:s0:c' err
remount -t vfat -o 'loop,context="system_u:object_r:casemate_image_t:s0:c900,c901"' fat.img $mnt
want 0 run --rm --require enforced -q $L $(disk '') -- sh -c 'echo hi > /dev/vdb'
[ "$(head -c 2 $d)" = hi ] || fail "the guest could not write"
refused "does not let this runner use" $(disk '') -- true
# ext4 under context= keeps neither labels nor our memory of them
truncate -s 16M ext.img; mkfs.ext4 -q -O ^has_journal ext.img
remount -o 'loop,context="system_u:object_r:casemate_image_t:s0:c900,c901"' ext.img $mnt
want 0 run --rm --require enforced -q $L $(disk '') -- true

# rootcontext= only labels the root: files get, keep and give back labels of their own
remount -t tmpfs -o rootcontext=system_u:object_r:tmp_t:s0 none $mnt
chcon -t tmp_t $d; before=$(label_of $d)
want 0 run -d -q --require enforced --name cli-tmpfs $(disk '') -- sleep 1000
case $(label_of $d) in *:casemate_image_t:s0:c*,c*) ;; *) fail "on tmpfs: $(label_of $d)" ;; esac
want 0 casemate rm -f cli-tmpfs
[ "$(label_of $d)" = "$before" ] || fail "restored to $(label_of $d)"
end; trap - EXIT
"#)
    .map(drop)
}

fn attacks() -> Result<(), Failed> {
    job(r#"
at() { echo "--disk id=d,path=$1,format=raw${2:-}"; }
ln -s $d link.img;         refused "symbolic link" $(at $PWD/link.img) -- true
ln $d hard.img;            refused "hard links" $(disk '') -- true; rm hard.img
mkdir dir; mkfifo fifo
refused "is a directory" $(at $PWD/dir ,ro) -- true
refused "/fifo" $(at $PWD/fifo ,ro) -- true
for device in /dev/null /dev/kvm /dev/net/tun; do
    node=$(label_of $device); refused "$device" $(at $device ,ro) -- true
    [ "$(label_of $device)" = "$node" ] || fail "$device was relabelled"
done

# a place by another name: SELinux would let the jailer label it, its place does not
truncate -s 1M /etc/cli-objects.img /root/.cli-objects.img; chcon -t tmp_t /etc/cli-objects.img /root/.cli-objects.img
mkdir bound; mount --bind /etc $PWD/bound
trap 'umount $PWD/bound 2>/dev/null; umount $PWD/ro 2>/dev/null; chattr -i $d; rm -f /etc/cli-objects.img /root/.cli-objects.img' EXIT
refused "lies under /etc" $(at /etc/cli-objects.img ,ro) -- true
refused "lies under /etc" $(at $PWD/bound/cli-objects.img ,ro) -- true
refused "lies under /etc" $(at $PWD/bound/cli-objects.img '') -- true
refused "lies under /root" $(at /root/.cli-objects.img ,ro) -- true
[ "$(stat -c %C /etc/cli-objects.img | cut -d: -f3)" = tmp_t ] || fail "it was labelled by its other name"

chattr +i $d || fail "chattr"
refused "immutable" $(disk ,ro) -- true
refused "$d" $(disk '') -- true
chattr -i $d
mkdir ro; mount --bind $PWD ro && mount -o remount,bind,ro $PWD/ro
refused "mounted read-only" $(at $PWD/ro/d.img ,ro) -- true
refused "d.img" $(at $PWD/ro/d.img '') -- true

# what happens to names while a guest runs
before=$(label_of $d)
want 0 run -d -q --name cli-names $(disk '') -- sleep 1000
ln $d later.img; mv $d moved.img; truncate -s 1M $d; chcon -t etc_t $d
want 0 casemate rm -f cli-names
[ "$(label_of $d | cut -d: -f3)" = etc_t ] || fail "the file that took the name was touched: $(label_of $d)"
echo "moved: $(label_of moved.img), before $before"
umount $PWD/bound; umount $PWD/ro; rm -f /etc/cli-objects.img /root/.cli-objects.img; trap - EXIT
"#)
    .map(drop)
}

fn block_device() -> Result<(), Failed> {
    job(r#"
modprobe loop; loop=$(losetup --show -f $d); trap 'setsebool casemate_use_host_disks off; losetup -d $loop' EXIT
d=$loop; before=$(label_of $d)
refused "setsebool -P casemate_use_host_disks on" $(disk '') -- true
setsebool casemate_use_host_disks on
want 0 run -d -q --require enforced --name cli-block $(disk '') -- sh -c 'echo hi > /dev/vdb; sync; sleep 1000'
case $(label_of $d) in *:casemate_image_t:s0:c*,c*) ;; *) fail "the node carries $(label_of $d)" ;; esac
eventually sh -c "head -c 2 $d | grep -q hi"
want 0 casemate rm -f cli-block
[ "$(label_of $d)" = "$before" ] || fail "restored to $(label_of $d)"
setsebool casemate_use_host_disks off; losetup -d $loop; trap - EXIT
"#)
    .map(drop)
}

/// Perl, which every Debian has, speaks fcntl(2) and getsockopt(2).
fn lock_and_sockets() -> Result<(), Failed> {
    job(r#"
# F_OFD_SETLK, a write lock on byte 1, as libvirt takes it. Our lock of the image covers that byte too and meets it first;
# the record's own lock is shown in relabel_tests.
hold_byte() { perl -e '$|=1; open(F, "+<", $ARGV[0]) or die; fcntl(F, 37, pack("s s x4 q q l x4", 1, 0, $ARGV[1], 1, 0)) or die $!; print "held\n"; sleep 100' $d $1 > held & holder=$!; eventually grep -q held held; }
hold_byte 1
refused "in use by another" $(disk '') -- true
kill $holder; wait $holder 2>/dev/null
want 0 run -d -q --name cli-lock $(disk '') -- sleep 1000

# the peer of whoever connects: the listener's type, at the connector's level
seen=$(perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un($ARGV[0])) or die $!; print getsockopt(S, 1, 31)' /run/casemate/vms/cli-lock/vsock.sock | tr -d '\0')
case $seen in *:casemate_runner_t:*) ;; *) fail "the vsock listener is $seen" ;; esac
want 0 casemate rm -f cli-lock
"#)
    .map(drop)
}

/// svirt.md 24 and 26 ask what becomes of labels when a guest's files are written for it or read elsewhere. Neither is
/// offered: a guest that cannot be saved, dumped or moved leaves no unlabelled memory behind.
fn not_offered() -> Result<(), Failed> {
    job(r#"
want 0 run -d -q --name cli-stay -- sleep 1000
for verb in snapshot save dump migrate; do
    casemate $verb cli-stay >out 2>err && fail "casemate $verb exists: label what it writes"
    has "unrecognized subcommand" err
done
pid=$(casemate inspect --format json cli-stay | grep -A1 '"runner"' | field pid)
grep -q 'Max core file size *0 *0' /proc/$pid/limits || fail "the runner may dump core"
want 0 casemate rm -f cli-stay
"#)
    .map(drop)
}

fn restorecon() -> Result<(), Failed> {
    job(r#"
types=/etc/selinux/default/contexts/customizable_types
images=/var/lib/cli-objects; mkdir -p $images; cp -a $types types.keep
trap 'cat types.keep > $types; casemate rm -f cli-rc >/dev/null 2>&1; rm -rf $images' EXIT
d=$images/d.img; truncate -s 1M $d
writer='n=0; while :; do n=$((n+1)); echo $n | dd of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null && echo ok $n || echo BAD $n; sleep 0.2; done'
writes() { casemate logs cli-rc 2>/dev/null | grep -c "^$1" ; }
more() { n=$(writes $1); eventually sh -c "[ \$(casemate logs cli-rc 2>/dev/null | grep -c '^$1') -gt $n ]"; }
attested() { casemate inspect --attest --format json cli-rc > attested 2>&1; grep -A4 "\"label of $d\"" attested | grep -o '"ok": *[a-z]*' | sort -u | grep -o 'true\|false'; }

# without: the label goes, the guest's writes fail, and an attestation says so
want 0 run -d -q --name cli-rc $(disk '') -- sh -c "$writer"
more ok
[ "$(attested)" = true ] || fail "attested: $(cat attested)"
restorecon -R $images
case $(label_of $d) in *:casemate_image_t:*) fail "nothing to prevent: $(label_of $d)" ;; esac
more BAD
[ "$(attested)" = false ] || fail "not noticed: $(cat attested)"
want 0 casemate rm -f cli-rc
# restorecon keeps the level: what is left looks like another manager's, and the next start says so
want 125 run --rm -q $(disk '') -- true; has "restorecon -F $d" err
restorecon -F $d

# with: the remedy that `policy status` prints
casemate policy status > status; remedy=$(sed -n 's/.*: \(printf .*\)/\1/p' status)
[ -n "$remedy" ] || fail "no remedy in $(cat status)"
sh -c "$remedy"; tail -2 $types
casemate policy status | grep printf && fail "the remedy does not satisfy"
want 0 run -d -q --name cli-rc $(disk '') -- sh -c "$writer"
more ok; during=$(label_of $d)
restorecon -R $images
[ "$(label_of $d)" = "$during" ] || fail "it became $(label_of $d)"
more ok
[ "$(writes BAD)" = 0 ] || fail "the guest saw errors"
[ "$(attested)" = true ] || fail "attested: $(cat attested)"
# -F is an order, and is noticed
restorecon -F -R $images
more BAD; [ "$(attested)" = false ] || fail "-F was not noticed"
want 0 casemate rm -f cli-rc
cat types.keep > $types; rm -rf $images; trap - EXIT
"#)
    .map(drop)
}

fn hugepages() -> Result<(), Failed> {
    job(r#"
pool=/sys/kernel/mm/hugepages/hugepages-2048kB; H="--hugepages 2M --memory 128M"
trap 'casemate rm -f cli-huge >/dev/null 2>&1; sysctl -qw vm.nr_hugepages=0' EXIT
sysctl -qw vm.nr_hugepages=10
refused "sysctl vm.nr_hugepages=64" $H -- true
refused "no multiple of 2M" --hugepages 2M --memory 129M -- true
refused "hugepages=1" --hugepages 1G --memory 1G -- true
refused "use 2M or 1G" --hugepages 4K -- true
sysctl -qw vm.nr_hugepages=66
[ "$(cat $pool/nr_hugepages)" = 66 ] || fail "only $(cat $pool/nr_hugepages) pages could be had"
want 0 run -d --require enforced --name cli-huge $H $(disk '') -- sh -c 'grep MemTotal /proc/meminfo; sleep 1000'
has "posture enforced" err
casemate inspect --format json cli-huge > record
pid=$(grep -A1 '"runner"' record | field pid); pair=$(field categories < record | head -1)
memory=$(ls -l /proc/$pid/fd | sed -n 's/.* \([0-9]*\) -> .memfd:memory.*/\1/p')
[ -n "$memory" ] || { ls -l /proc/$pid/fd; fail "no memory"; }
case $(stat -L -c %C /proc/$pid/fd/$memory) in *:casemate_memory_t:s0:$pair) ;; *) fail "memory $(stat -L -c %C /proc/$pid/fd/$memory), pair $pair" ;; esac
[ $(stat -L -c %s /proc/$pid/fd/$memory) = 134217728 ] || fail "its size"
grep -q memfd:memory /proc/$pid/maps || fail "not mapped"
grep -o '"ok": *false' record && fail "a finding does not hold"
[ $(cat $pool/free_hugepages) -lt 60 ] || fail "the guest runs elsewhere"
# sealed: not even root changes the size
truncate -s 0 /proc/$pid/fd/$memory 2>err && fail "its size can be changed"
cgroup=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)
[ "$(cat $cgroup/hugetlb.2MB.max)" = 134217728 ] || fail "hugetlb limit $(cat $cgroup/hugetlb.2MB.max)"
refused "64 huge pages of 2M are needed" $H -- true
want 0 casemate rm -f cli-huge
[ $(cat $pool/free_hugepages) = 66 ] || fail "$(cat $pool/free_hugepages) of 66 came back"
sysctl -qw vm.nr_hugepages=0; trap - EXIT
"#)
    .map(drop)
}
