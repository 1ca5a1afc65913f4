//! Backing chains on a host that enforces (svirt.md 18): two guests with an overlay each over one base.

use std::fs::File;
use std::path::PathBuf;

use casemate_storage::qcow2::{NewImage, create};
use libtest_mimic::{Failed, Trial};

use crate::{cli::script, l1};

const PLACE: &str = "/var/lib/chains";
const SIZE: u64 = 16 << 20;

pub fn tests() -> Vec<Trial> {
    let trial = |name: &str, run: fn() -> Result<(), Failed>| {
        Trial::test(format!("svirt_18: {name}"), move || l1::patiently(run))
    };
    vec![
        trial("two guests share a base, each with its overlay, and labels go back", two_over_one_base),
        trial("chains that lie, loop or are in use are refused", refusals),
    ]
}

/// Overlays are made here, since L1 has no qemu-img; the base is L1's.
fn push() -> Result<(), Failed> {
    let dir = std::env::temp_dir().join(format!("casemate-chains-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let images = [
        ("a.qcow2", Some(("base.img", "raw"))),
        ("mid.qcow2", Some(("base.img", "raw"))),
        ("b.qcow2", Some(("mid.qcow2", "qcow2"))),
        ("loop.qcow2", Some(("loop.qcow2", "qcow2"))),
        ("nbd.qcow2", Some(("nbd:localhost:1", "raw"))),
        ("secret.qcow2", Some(("/etc/shadow", "raw"))),
    ];
    let mut files: Vec<PathBuf> = Vec::new();
    for (name, backing) in images {
        let path = dir.join(name);
        create(&File::create(&path)?, &NewImage { size: SIZE, backing, ..NewImage::default() })?;
        files.push(path);
    }
    let made = l1::sh(None, &format!("rm -rf {PLACE}; mkdir -m 700 -p {PLACE}"))?;
    l1::push(&files, &format!("{PLACE}/"))?;
    std::fs::remove_dir_all(&dir)?;
    if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned().into()) }
}

/// JSON is picked apart by sed: L1 has neither jq nor python.
const TOOLS: &str = r#"
P=/var/lib/chains
fail() {
    echo "FAILED: $*"; cat out err 2>/dev/null | tail -20; ls -lZ $P; dmesg | grep avc: | tail -5
    casemate ps -a -q | grep '^mj-ch' | xargs -r casemate rm -f >/dev/null 2>&1
    exit 1
}
field() { grep -o "\"$1\": *\(\"[^\"]*\"\|[a-z0-9]*\)" | sed 's/^[^:]*: *//; s/"//g'; }
labels() { for f in base.img mid.qcow2 a.qcow2 b.qcow2; do stat -c '%n %C' $P/$f; done; }
label() { stat -c %C $P/$1; }
may() { # subject, file, permission: the loaded policy's word (/sys/fs/selinux/access)
    exec 3<>/sys/fs/selinux/access
    printf '%s %s %s ffffffff' "$1" "$(label $2)" "$(cat /sys/fs/selinux/class/file/index)" >&3
    read -r av rest <&3; exec 3>&-
    [ $(( (0x$av >> ($(cat /sys/fs/selinux/class/file/perms/$3) - 1)) & 1 )) = 1 ]
}
disk() { echo "id=d,path=$P/$1.qcow2,format=qcow2,mount=/d,fstype=ext4"; }
truncate -s 16M $P/base.img; mkfs.ext4 -q $P/base.img
want 0 run --rm -q --disk id=d,path=$P/base.img,format=raw,mount=/d,fstype=ext4 -- sh -c 'echo of-base > /d/base'
sum=$(sha256sum < $P/base.img)
labels > before; dmesg -C
"#;

fn two_over_one_base() -> Result<(), Failed> {
    push()?;
    script(&format!(
        "{TOOLS}{}",
        r#"
midsum=$(sha256sum < $P/mid.qcow2)
for vm in a b; do want 0 run -d -q --require enforced --name mj-ch-$vm --disk $(disk $vm) -- sleep 1000; done
# During: a pair of its own on each top, content below, for both alike.
for vm in a b; do
    casemate inspect --format json mj-ch-$vm > record-$vm
    pair=$(field categories < record-$vm | head -1); echo $pair >> pairs
    case $(label $vm.qcow2) in *:casemate_image_t:s0:$pair) ;; *) fail "top of $vm: $(label $vm.qcow2), pair $pair" ;; esac
done
[ "$(sort -u pairs | wc -l)" = 2 ] || fail "the same pair"
for f in base.img mid.qcow2; do case $(label $f) in *:casemate_content_t:s0) ;; *) fail "$f: $(label $f)" ;; esac; done
# A writes, B sees its base alone, and the other way round.
want 0 casemate exec mj-ch-a -- sh -c 'cat /d/base; echo of-a > /d/mine; echo changed > /d/base; sync'
has of-base out
want 0 casemate exec mj-ch-b -- sh -c 'cat /d/base; ls /d; echo of-b > /d/mine; sync'
has of-base out; grep -q mine out && fail "B sees what A wrote"
want 0 casemate exec mj-ch-a -- sh -c 'cat /d/mine /d/base'
has of-a out; has changed out
# What the loaded policy lets A's runner do: read what lies below both, write its own top, nothing of B's top.
la=$(field label < record-a | head -1); lb=$(field label < record-b | head -1)
for l in "$la" "$lb"; do for f in base.img mid.qcow2; do
    may "$l" $f read || fail "$l may not read $f"
    may "$l" $f write && fail "$l may write $f"
done; done
may "$la" a.qcow2 write || fail "A may not write its own top"
may "$la" b.qcow2 read && fail "A may read B's top"
may "$lb" a.qcow2 write && fail "B may write A's top"
# And what the kernel says, layer by layer: A tries B's top, and to write what lies below it.
casemate attack --format json mj-ch-a mj-ch-b > table || fail "$(cat table)"
for f in b.qcow2 mid.qcow2 base.img; do has "write mj-ch-b's disk $P/$f" table; done
# Base and middle are in use by two: nobody may write them meanwhile.
want 125 run --rm -q --disk id=d,path=$P/base.img,format=raw -- true
has "in use" err; has base.img err
want 125 run --rm -q --disk id=d,path=$P/mid.qcow2,format=qcow2 -- true
has "in use" err
want 125 run --rm -q --disk $(disk a) -- true
has "in use" err
# One ends: what the other still needs stays content.
want 0 casemate stop -t 5s mj-ch-a
[ "$(label a.qcow2)" = "$(grep a.qcow2 before | cut -d' ' -f2)" ] || fail "top of a: $(label a.qcow2)"
case $(label base.img) in *:casemate_content_t:s0) ;; *) fail "the base was restored under B: $(label base.img)" ;; esac
want 0 casemate exec mj-ch-b -- cat /d/mine /d/base
has of-b out; has of-base out
want 0 casemate stop -t 5s mj-ch-b
labels | cmp - before || fail "labels afterwards: $(labels), before: $(cat before)"
[ "$(sha256sum < $P/base.img)" = "$sum" ] || fail "the base changed"
[ "$(sha256sum < $P/mid.qcow2)" = "$midsum" ] || fail "the middle image changed"
# What was written is there in the next life, and the file system is whole.
want 0 run --rm -q --disk $(disk a) -- sh -c 'cat /d/mine /d/base'
has of-a out; has changed out
want 0 run --rm -q --disk $(disk b),ro -- sh -c 'cat /d/mine /d/base; echo no > /d/base || echo refused'
has of-b out; has of-base out; has refused out
want 0 casemate rm mj-ch-a mj-ch-b
labels | cmp - before || fail "labels at the end"
"#
    ))
    .map(drop)
}

fn refusals() -> Result<(), Failed> {
    push()?;
    script(&format!(
        "{TOOLS}{}",
        r#"
top=id=d,path=$P/a.qcow2,format=qcow2
# Found chains.
want 125 run --rm -q --disk id=d,path=$P/loop.qcow2,format=qcow2 -- true
has "comes back" err
want 125 run --rm -q --disk id=d,path=$P/nbd.qcow2,format=qcow2 -- true
has "no plain path" err
# A name that a guest may have put there: found, shown, and refused before a label changes.
shadow=$(stat -c %C /etc/shadow)
want 125 run --rm -q --disk id=d,path=$P/secret.qcow2,format=qcow2 -- true
has /etc/shadow err
[ "$(stat -c %C /etc/shadow)" = "$shadow" ] || fail "shadow: $(stat -c %C /etc/shadow)"
# Declared chains that are not the images': an error before the first guest instruction.
want 125 run --rm -q --disk $top,backing=none -- true
has "guest would read zeroes" err
want 125 run --rm -q --disk $top,backing=$P/mid.qcow2:qcow2 -- true
has "says that its backing file is raw" err
want 125 run --rm -q --disk id=d,path=$P/base.img,format=qcow2 -- true
has "no qcow2 image" err
want 125 run --rm -q --disk $top,backing=$P/base.img:raw --disk id=e,path=$P/base.img,format=raw -- true
has "would be written" err
# A base that another guest has for itself.
want 0 run -d -q --name mj-ch-x --disk id=d,path=$P/base.img,format=raw -- sleep 1000
want 125 run --rm -q --disk $top -- true
has "in use" err; has base.img err
want 0 casemate rm -f mj-ch-x
labels | cmp - before || fail "labels afterwards: $(labels), before: $(cat before)"
want 0 run --rm -q --disk $top,backing=$P/base.img:raw -- true
labels | cmp - before || fail "labels at the end"
"#
    ))
    .map(drop)
}
