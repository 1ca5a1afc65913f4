//! Levels: whose are in use, which are leased, fixed, lost and found again; with other managers' files in place.

use libtest_mimic::{Failed, Trial};

use crate::{cli, l1};

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| Trial::test(name, move || l1::patiently(run));
    vec![
        trial("svirt_10_16_55: fixed levels are honoured, and refused where anybody has them", fixed),
        trial("svirt_02_08_13: pairs come from the caller's range, as one level", window),
        trial("svirt_11: leases that were lost are told, and taken up again", lost),
    ]
}

/// What other managers would write. Removed at the end, also of a script that fails.
const OTHERS: &str = r#"
forget() { rm -f /etc/libvirt/qemu/cli-fixed.xml /var/lib/containers/storage/overlay-containers/containers.json /var/lib/libvirt/images/cli.img; casemate rm -f cli-a cli-b >/dev/null 2>&1; }
trap forget EXIT
mkdir -p /etc/libvirt/qemu /var/lib/containers/storage/overlay-containers /var/lib/libvirt/images
echo "<domain><name>cli-fixed</name><seclabel type='static' model='selinux'><label>system_u:system_r:svirt_t:s0:c100,c200</label></seclabel></domain>" > /etc/libvirt/qemu/cli-fixed.xml
echo '[{"id":"a","names":["cli-web"],"flags":{"MountLabel":"system_u:object_r:container_file_t:s0:c300,c400","ProcessLabel":"system_u:system_r:container_t:s0:c300,c400"}}]' > /var/lib/containers/storage/overlay-containers/containers.json
echo x > /var/lib/libvirt/images/cli.img
restorecon -R /etc/libvirt /var/lib/containers /var/lib/libvirt
chcon -l s0:c500,c600 /var/lib/libvirt/images/cli.img
"#;

fn fixed() -> Result<(), Failed> {
    let body = r#"
want 0 run -d --name cli-a --selinux-level s0:c5.c7 --selinux-level-shared -- sleep 1000
want 0 casemate inspect --format json cli-a
has casemate_runner_t:s0:c5.c7 out
has "is shared" out
refused() { want 125 run --rm --name cli-b --selinux-level $1 -- true; has "$2" err; }
refused s0:c5,c6 "sandbox cli-a"
refused s0:c5.c7 "in use by"
refused s0:c100,c200 "libvirt cli-fixed"
refused s0:c300 "container cli-web"
refused s0 "without a category"
refused s1:c1,c2 "does not accept"
want 0 run --rm --name cli-b --selinux-level s0:c5.c7 --selinux-level-shared -- true
want 0 run --rm --name cli-b --selinux-level s0:c500,c600 -- true
has "/var/lib/libvirt/images/cli.img carries" err
want 0 casemate labels
for text in s0:c5.c7 "sandbox cli-a" "libvirt cli-fixed" s0:c300,c400 /var/lib/libvirt/images/cli.img; do has "$text" out; done
want 0 casemate labels --check
forget
"#;
    cli::script(&format!("{OTHERS}{body}")).map(drop)
}

fn window() -> Result<(), Failed> {
    cli::script(
        r#"
# through a shell: a program of its own type is no entry point
range() { r=$1; shift; runcon -l $r sh -c '"$@"' sh "$@"; }
trap 'casemate rm -f cli-a >/dev/null 2>&1' EXIT
want 0 range s0-s0:c40,c50.c57,c60 casemate run $ROOT -d --name cli-a -- sleep 1000
casemate inspect --format json cli-a > out
pair=$(sed -n 's/.*"categories": "\(.*\)".*/\1/p' out | head -n 1)
for c in $(echo $pair | tr ',' ' '); do
    case $c in c40 | c5[0-7] | c60) ;; *) fail "$pair is not from the caller's range" ;; esac
done
has "casemate_runner_t:s0:$pair\"" out
want 0 casemate labels --check
want 125 range s0-s0:c1.c5 casemate run $ROOT --rm --name cli-b -- true
has "fewer than 8" err
want 125 range s0-s0:c40.c60 casemate run $ROOT --rm --name cli-b --selinux-level s0:c1,c2 -- true
has "not within the caller" err
casemate rm -f cli-a
"#,
    )
    .map(drop)
}

fn lost() -> Result<(), Failed> {
    cli::script(
        r#"
trap 'casemate rm -f cli-a >/dev/null 2>&1' EXIT
want 0 run -d --name cli-a -- sleep 1000
want 0 casemate labels --check
before=$(cd /run/casemate/leases; echo mcs/* uid/*)
rm /run/casemate/leases/mcs/* /run/casemate/leases/uid/*
want 125 casemate labels --check
has "is not in the ledger" out
has "casemate repair" out
want 0 casemate repair -n
[ -z "$(ls /run/casemate/leases/mcs)" ] || fail "a dry run changed something"
want 0 casemate repair
has "taken up again" out
[ "$(cd /run/casemate/leases; echo mcs/* uid/*)" = "$before" ] || fail "other leases than before"
want 0 casemate labels --check
want 0 casemate repair
grep -q "taken up" out && fail "a second repair finds something"
casemate rm -f cli-a
[ -z "$(ls /run/casemate/leases/mcs /run/casemate/leases/uid | grep -v :)" ] || fail "leases are left"
"#,
    )
    .map(drop)
}
