//! The main job on a host that enforces, beyond what a user types (`cli`): posture, separation, kernels, disks, ends, and
//! a host without a trace and without a denial afterwards. Each trial is one script in L1 (see [`cli::script`]).

use libtest_mimic::{Failed, Trial};

use crate::{cli::script, l1};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| {
        Trial::test(format!("main job: {name}"), move || l1::patiently(run))
    };
    vec![
        trial("a plain run is denied nothing", nothing_denied),
        trial("the command's environment, directory, user and host name", surroundings),
        trial("enforced is what is required, and permissive is not called so", posture),
        trial("two guests: pairs, uids, labels of runners and images before, during, after", separation),
        trial("every attack is denied by all layers, every control allowed", attack_table),
        trial("every layer's selftest holds", selftest),
        trial("an unmodified 6.1 kernel boots too", older_kernel),
        trial("two vCPUs are two processors", two_cpus),
        trial("a writable disk is mounted, and keeps what was written", writable_disk),
        trial("power off, reboot, panic and kill are told apart in the record", ends),
        trial("kernels and initial RAM disks that cannot boot are told with the console", cannot_boot),
        trial("a kernel without drivers is refused before it is started", no_drivers),
        trial("an image in use is refused with its name", image_in_use),
        trial("a specification file", spec_file),
        trial("the host is as it was", host_is_clean),
    ]
}

/// JSON is picked apart by sed: L1 has neither jq nor python. `field NAME` prints the values of a field, one per line.
/// A failure takes its sandboxes with it, so that one is not told by the trials that follow.
const TOOLS: &str = r#"
fail() {
    echo "FAILED: $*"; cat out err 2>/dev/null | tail -20
    casemate ps -a -q | grep '^mj-' | xargs -r casemate rm -f >/dev/null 2>&1
    exit 1
}
field() { grep -o "\"$1\": *\(\"[^\"]*\"\|[a-z0-9]*\)" | sed 's/^[^:]*: *//; s/"//g'; }
"#;

fn job(body: &str) -> Result<String, Failed> {
    script(&format!("{TOOLS}{body}"))
}

fn nothing_denied() -> Result<(), Failed> {
    job("want 0 run --rm -q -- true")?;
    l1::sh(None, "dmesg -C")?;
    job(r#"
truncate -s 8M d.img
want 3 run --rm -q --disk id=d,path=$PWD/d.img,format=raw -- sh -c 'echo hi; head -c 4 /dev/vdb >/dev/null; exit 3'
want 0 run -d -q --name mj-avc -- sleep 1000
want 0 casemate exec mj-avc -- true
want 0 casemate inspect --attest mj-avc
want 0 casemate pause mj-avc
want 0 casemate resume mj-avc
want 0 casemate stop mj-avc
want 0 casemate rm mj-avc
"#)?;
    let log =
        l1::sh(None, "dmesg | grep -E 'avc: *denied|type=1326|segfault' | grep -E 'casemate|type=1326|segfault'")?;
    let lines = String::from_utf8_lossy(&log.stdout).into_owned();
    if lines.is_empty() { Ok(()) } else { Err(lines.into()) }
}

fn surroundings() -> Result<(), Failed> {
    job(
        r#"
want 0 run --rm -q -e A='b c' -e EMPTY= -w /tmp -u 33:44 --hostname deep -- sh -c 'echo "$A|$EMPTY|$PWD|$(id -u)|$(id -g)|$(hostname)|$HOME"; env | wc -l'
has "b c||/tmp|33|44|deep|" out
FROM_HOST=1 want 0 run --rm -q -- sh -c 'env; cat /proc/1/cmdline; ls /proc/self/fd'
grep -q FROM_HOST out && fail "the host's environment is in the guest"
want 0 run --rm -q --name mj-own -- hostname
has mj-own out
want 0 run --rm -q -- sh -c 'echo x > /etc/new && cat /etc/new; grep " / " /proc/mounts'
has x out; has overlay out
"#,
    )
    .map(drop)
}

fn posture() -> Result<(), Failed> {
    job(r#"
trap 'setenforce 1' EXIT
want 0 run --rm --require enforced -- true
has "posture enforced" err
want 0 run -d -q --require enforced --name mj-p -- sleep 1000
[ "$(casemate inspect --format json mj-p | field posture | sort -u)" = enforced ] || fail "inspect"
setenforce 0
want 125 run --rm -q -- true; cp err refused
want 125 run --rm -q --require enforced -- true; cp err required
want 0 run --rm --allow-reduced "a test" -- sh -c 'echo ran'; cp out ran; cp err reduced
want 125 run --rm -q --allow-reduced "a test" --require enforced -- true
setenforce 1
has permissive refused; has allow-reduced refused
has enforced required
has ran ran; has "posture reduced" reduced
grep -q "posture enforced" reduced && fail "permissive is called enforced"
want 0 casemate rm -f mj-p
want 0 run --rm --require enforced -- true
"#)
    .map(drop)
}

fn separation() -> Result<(), Failed> {
    job(
        r#"
for vm in mj-a mj-b; do
    truncate -s 8M $vm.img; stat -c '%C %U %a' $vm.img > before.$vm
    want 0 run -d -q --name $vm --disk id=data,path=$PWD/$vm.img,format=raw -- sleep 1000
done
casemate ps --format json > ps
one() { casemate inspect --format json $1 > record; }
for vm in mj-a mj-b; do
    one $vm; pair=$(field categories < record | head -1); label=$(field label < record | head -1)
    case $label in *:casemate_runner_t:s0:$pair) ;; *) fail "label $label, pair $pair" ;; esac
    has "$pair" ps; has '"enforced"' ps
    pid=$(grep -A1 '"runner"' record | field pid)
    [ "$(tr -d '\0' < /proc/$pid/attr/current)" = "$label" ] || fail "the runner carries another label"
    for t in /proc/$pid/task/*; do [ "$(tr -d '\0' < $t/attr/current)" = "$label" ] || fail "a thread has another label"; done
    case $(stat -c %C $vm.img) in *:casemate_image_t:s0:$pair) ;; *) fail "image $(stat -c %C $vm.img), pair $pair" ;; esac
    grep -o '"ok": *false' record && fail "a finding of $vm does not hold"
    echo "$pair $(grep '^Uid' /proc/$pid/status | cut -f2)" >> both
done
[ "$(cut -d' ' -f1 both | sort -u | wc -l)" = 2 ] || fail "the same pair: $(cat both)"
[ "$(cut -d' ' -f2 both | sort -u | wc -l)" = 2 ] || fail "the same uid: $(cat both)"
[ "$(ls /run/casemate/leases/mcs | wc -l)" = 2 ] || fail "$(ls /run/casemate/leases/mcs)"
want 0 casemate stop -t 1s mj-a
want 0 casemate kill mj-b
for vm in mj-a mj-b; do stat -c '%C %U %a' $vm.img | cmp - before.$vm || fail "the image of $vm is not as it was: $(stat -c '%C %U %a' $vm.img), $(cat before.$vm)"; done
[ -z "$(ls /run/casemate/leases/mcs /run/casemate/leases/uid | grep -v :)" ] || fail "leases are left"
want 0 casemate rm mj-a mj-b
"#,
    )
    .map(drop)
}

/// Beside the summary line that `cli` looks for: each row of the JSON.
fn attack_table() -> Result<(), Failed> {
    job(r#"
for vm in mj-a mj-b; do
    truncate -s 8M $vm.img
    want 0 run -d -q --name $vm --disk id=data,path=$PWD/$vm.img,format=raw -- sleep 1000
done
casemate attack --format json mj-a mj-b > table || fail "$(cat table)"
field ok < table | sort | uniq -c > oks
[ "$(grep -c false oks)" = 0 ] || fail "$(cat table)"
[ "$(field ok < table | grep -c true)" -ge 15 ] || fail "$(cat oks)"
[ "$(field attack < table | wc -l)" -ge 15 ] || fail "few attacks"
# With all layers nothing is allowed but the controls; SELinux alone says no too.
n=$(sed '/"controls"/,$d' table | field all | grep -c allowed); [ $n = 0 ] || fail "$n attacks are allowed"
n=$(sed '/"controls"/,$d' table | field selinux | grep -vc allowed); [ $n -ge 5 ] || fail "SELinux alone denies $n only"
n=$(sed -n '/"controls"/,$p' table | field all | grep -c allowed); [ $n -ge 1 ] || fail "no control is allowed"
want 0 casemate ps -q
has mj-b out
want 0 casemate rm -f mj-a mj-b
"#)
    .map(drop)
}

fn selftest() -> Result<(), Failed> {
    job(
        r#"
casemate selftest --format json > table || fail "$(cat table)"
[ "$(field ok < table | grep -c false)" = 0 ] || fail "$(cat table)"
[ "$(field ok < table | grep -c true)" -ge 20 ] || fail "$(field ok < table | wc -l) rows"
for layer in selinux landlock seccomp capabilities namespaces; do grep -qi $layer table || fail "nothing of $layer"; done
"#,
    )
    .map(drop)
}

fn older_kernel() -> Result<(), Failed> {
    job(
        r#"
casemate kernel list --format json | grep -q bookworm || want 0 casemate kernel import --name bookworm /var/lib/testbed/bookworm.deb
want 0 run --rm -q --kernel bookworm -- uname -r
grep -q '^6\.1\.' out || fail "$(cat out)"
want 0 run --rm -q -- uname -r
grep -q '^6\.12\.' out || fail "$(cat out)"
"#,
    )
    .map(drop)
}

fn two_cpus() -> Result<(), Failed> {
    job(
        r#"
want 0 run --rm -q --cpus 2 -m 300M -- sh -c 'nproc; grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo; (while :; do :; done) & (taskset 2 true); kill $!'
[ "$(head -2 out | sort -u)" = 2 ] || fail "$(cat out)"
mem=$(grep MemTotal out | tr -dc 0-9); [ $mem -gt 200000 ] && [ $mem -lt 310000 ] || fail "memory $mem"
"#,
    )
    .map(drop)
}

fn writable_disk() -> Result<(), Failed> {
    job(
        r#"
truncate -s 16M data.img; mkfs.ext4 -q data.img
disk=id=data,path=$PWD/data.img,format=raw,mount=/data,fstype=ext4
want 0 run --rm -q --disk $disk -- sh -c 'echo kept > /data/file; mkdir /data/dir'
want 0 run --rm -q --disk $disk -- sh -c 'cat /data/file; ls -d /data/dir; grep /data /proc/mounts'
has kept out; has /data/dir out; has ext4 out
e2fsck -fn data.img >out 2>err || fail "the file system is damaged"
want 0 run --rm -q --disk $disk,ro -- sh -c 'cat /data/file; echo no > /data/file || echo refused'
has kept out; has refused out
want 0 run --rm -q --disk id=raw,path=$PWD/data.img,format=raw,ro -- sh -c 'dd if=/dev/zero of=/dev/vdb bs=512 count=1 || echo refused'
has refused out
"#,
    )
    .map(drop)
}

fn ends() -> Result<(), Failed> {
    job(r#"
ended() { # cause, and the command
    cause=$1; shift
    casemate rm -f mj-e >/dev/null 2>&1
    casemate run $ROOT -q --name mj-e -- "$@" >out 2>err </dev/null
    got=$(field cause < /run/casemate/vms/mj-e/exit.json)
    [ "$got" = $cause ] || fail "$got instead of $cause: $(cat /run/casemate/vms/mj-e/exit.json | tail -c 300)"
}
ended power_off sh -c 'exit 4'
[ "$(field status < /run/casemate/vms/mj-e/exit.json)" = 4 ] || fail "the status is not in the record"
ended power_off poweroff -f
ended reboot reboot -f
ended guest_panic sh -c 'echo c > /proc/sysrq-trigger; sleep 20'
grep -q "Kernel panic" /run/casemate/vms/mj-e/console-log.* || fail "no panic in the console's log"
casemate rm -f mj-e
casemate run $ROOT -q --name mj-e --timeout 2s -- sleep 100 >out 2>err; [ $? = 124 ] || fail timeout
[ "$(field cause < /run/casemate/vms/mj-e/exit.json)" = timeout ] || fail "no timeout"
casemate rm mj-e
want 0 run -d -q --name mj-e -- sleep 1000
want 0 casemate kill mj-e
[ "$(field cause < /run/casemate/vms/mj-e/exit.json)" = killed ] || fail "not killed"
casemate rm mj-e
want 0 run -d -q --name mj-e -- sleep 1000
kill -9 $(casemate inspect --format json mj-e | grep -A1 '"runner"' | field pid)
eventually [ -e /run/casemate/vms/mj-e/exit.json ]
[ "$(field cause < /run/casemate/vms/mj-e/exit.json)" = runner_died ] || fail "not runner_died"
want 0 casemate rm mj-e
"#)
    .map(drop)
}

fn cannot_boot() -> Result<(), Failed> {
    job(r#"
head -c 100000 /dev/urandom > garbage
want 125 run --rm -q --initrd $PWD/garbage -- true
has "casemate:" err
grep -qiE "panic|initramfs|boot|VFS|init" err || fail "nothing of the console is told"
want 125 run --rm -q --kernel $PWD/garbage -- true
grep -q "give an\|give a" err || fail "no remedy"
: > empty
want 125 run --rm -q --kernel $PWD/empty -- true
has empty err
want 125 run --rm -q --kernel $PWD/missing -- true
has missing err
want 125 run --rm -q --cmdline init=/bin/nothing --kernel no-such-kernel -- true
has "no-such-kernel" err
"#)
    .map(drop)
}

/// A package whose modules are gone, imported as a bare image: the modules that the guest needs are not there.
fn no_drivers() -> Result<(), Failed> {
    job(r#"
dpkg-deb --fsys-tarfile /var/lib/testbed/bookworm.deb | tar x --wildcards './boot/vmlinuz-*'
mkdir -p none/kernel
want 125 casemate kernel import --name mj-bare --modules $PWD/none boot/vmlinuz-*
grep -qiE "virtio|module|driver" err || fail "it is not said what is missing"
casemate kernel list | grep -q mj-bare && fail "it was imported nevertheless"
true
"#)
    .map(drop)
}

fn image_in_use() -> Result<(), Failed> {
    job(r#"
truncate -s 8M d.img; disk=id=d,path=$PWD/d.img,format=raw
want 0 run -d -q --name mj-i --disk $disk -- sleep 1000
during=$(stat -c %C d.img)
want 125 run --rm -q --disk $disk -- true
has "in use" err; has d.img err
[ "$(stat -c %C d.img)" = "$during" ] || fail "a refused start changed the label"
want 0 casemate exec mj-i -- sh -c 'echo still >/dev/vdb'
want 0 casemate rm -f mj-i
ln -s d.img link; mkfifo fifo; ln d.img hard
for bad in link fifo missing; do want 125 run --rm -q --disk id=d,path=$PWD/$bad,format=raw -- true; has $bad err; done
want 125 run --rm -q --disk $disk -- true
has "hard link" err
"#)
    .map(drop)
}

fn spec_file() -> Result<(), Failed> {
    job(r#"
cat > s.toml <<'TOML'
name = "mj-s"
command = ["sh", "-c", "echo $GREETING; id -u"]
env = { GREETING = "from a file" }
user = "7"
memory = "192M"
require = "enforced"
root = { tar = "/var/lib/testbed/guest-rootfs-tiny.tar" }
TOML
casemate run --rm -q --spec s.toml > out 2>err || fail "toml"
has "from a file" out; has 7 out
sed -i 's/^memory/memroy/' s.toml
want 125 casemate run --rm -q --spec s.toml
has memroy err
casemate plan $ROOT --format json -- true > plan || fail plan
grep -q casemate_runner_t plan || grep -qi selinux plan || fail "the plan says nothing of SELinux"
"#)
    .map(drop)
}

fn host_is_clean() -> Result<(), Failed> {
    job(
        r#"
casemate repair --format json > first || fail "$(cat first)"
casemate repair --format json > again || fail "$(cat again)"
grep -q '"outcome"' again && fail "$(cat again)"
for kind in uid mcs; do [ -z "$(ls /run/casemate/leases/$kind 2>/dev/null)" ] || fail "leases: $(ls /run/casemate/leases/$kind)"; done
[ -z "$(ls -d /sys/fs/cgroup/casemate/*/ 2>/dev/null)" ] || fail "cgroups: $(ls -d /sys/fs/cgroup/casemate/*/)"
[ -z "$(pidof casemate-jailer casemate-runner)" ] || fail "processes: $(pidof casemate-jailer casemate-runner)"
grep casemate /proc/mounts && fail "mounts"
[ "$(getenforce)" = Enforcing ] || fail "not enforcing"
true
"#,
    )
    .map(drop)
}
