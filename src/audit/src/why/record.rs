//! One audit record, in each of the forms in which it comes to rest: auditd's log, the kernel's log, the journal.
//!
//! Trust: none. Names of programs and paths are whatever somebody called them; a line may be torn, overlong or made up.
//! Forms: audit_log_format() in the kernel (kernel/audit.c), auditd.conf(5) `log_format` RAW and ENRICHED, and journald's
//! journald-audit.c.

use std::fmt;

/// Longer lines are cut by the kernel (`AUDIT_MESSAGE_TEXT_MAX`, 8560) and by auditd; an enriched one is a little longer.
pub const MAX_LINE: usize = 64 << 10;
const MAX_FIELDS: usize = 128;
/// Where auditd's enriched form begins: what follows is said already.
const ENRICHED: u8 = 0x1d;

/// A record's type (include/uapi/linux/audit.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(pub u16);

impl Kind {
    pub const USER_AVC: Kind = Kind(1107);
    pub const SYSCALL: Kind = Kind(1300);
    pub const PATH: Kind = Kind(1302);
    pub const CWD: Kind = Kind(1307);
    pub const SECCOMP: Kind = Kind(1326);
    pub const PROCTITLE: Kind = Kind(1327);
    pub const AVC: Kind = Kind(1400);
    pub const SELINUX_ERR: Kind = Kind(1401);
    /// Linux 6.15.
    pub const LANDLOCK_ACCESS: Kind = Kind(1423);
    pub const LANDLOCK_DOMAIN: Kind = Kind(1424);
    pub const ANOM_ABEND: Kind = Kind(1701);

    const NAMES: [(&'static str, Kind); 11] = [
        ("USER_AVC", Kind::USER_AVC),
        ("SYSCALL", Kind::SYSCALL),
        ("PATH", Kind::PATH),
        ("CWD", Kind::CWD),
        ("SECCOMP", Kind::SECCOMP),
        ("PROCTITLE", Kind::PROCTITLE),
        ("AVC", Kind::AVC),
        ("SELINUX_ERR", Kind::SELINUX_ERR),
        ("LANDLOCK_ACCESS", Kind::LANDLOCK_ACCESS),
        ("LANDLOCK_DOMAIN", Kind::LANDLOCK_DOMAIN),
        ("ANOM_ABEND", Kind::ANOM_ABEND),
    ];

    /// `AVC`, `1400`, and `UNKNOWN[1423]`, as an auditd says that is older than the kernel. Types that say nothing of a
    /// denial are none.
    fn named(name: &str) -> Option<Self> {
        let number = name.strip_prefix("UNKNOWN[").and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        let number = number.parse::<u16>().ok();
        let known = Self::NAMES.iter().find(|(known, kind)| *known == name || number == Some(kind.0));
        known.map(|(_, kind)| *kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(_, kind)| kind == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Which event: all records of one have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Stamp {
    /// Since the epoch.
    pub seconds: u64,
    pub millis: u32,
    /// Counts from boot.
    pub serial: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub stamp: Stamp,
    fields: Vec<(String, String)>,
    /// Of an access vector: `read open`.
    pub permissions: Vec<String>,
    /// Of an access vector: `denied` or `granted`.
    pub denied: bool,
}

impl Record {
    /// A line of auditd's log: `[node=N ]type=T msg=audit(S.MMM:SERIAL): …`.
    pub fn of_auditd(line: &[u8]) -> Option<Self> {
        let line = text(line)?;
        let line = match line.strip_prefix("node=") {
            Some(rest) => rest.split_once(' ')?.1,
            None => &line,
        };
        let (kind, rest) = line.strip_prefix("type=")?.split_once(' ')?;
        let (stamp, rest) = stamp(rest.strip_prefix("msg=")?)?;
        Self::of(Kind::named(kind)?, stamp, rest)
    }

    /// A line of the kernel's log: `audit: type=1400 audit(S.MMM:SERIAL): …`.
    pub fn of_kernel(line: &[u8]) -> Option<Self> {
        let line = text(line)?;
        let (kind, rest) = line.strip_prefix("audit: type=")?.split_once(' ')?;
        let (stamp, rest) = stamp(rest)?;
        Self::of(Kind::named(kind)?, stamp, rest)
    }

    /// An entry of the journal's audit transport: its text, which begins with the type's name, and its fields.
    pub fn of_journal(message: &[u8], kind: u16, micros: u64, serial: u64) -> Option<Self> {
        let line = text(message)?;
        let kind = Kind::named(&kind.to_string())?;
        let rest = line.split_once(' ').map_or("", |(_, rest)| rest);
        let millis = u32::try_from(micros / 1000 % 1000).ok()?;
        Self::of(kind, Stamp { seconds: micros / 1_000_000, millis, serial }, rest)
    }

    fn of(kind: Kind, stamp: Stamp, rest: &str) -> Option<Self> {
        let mut record = Record { kind, stamp, fields: Vec::new(), permissions: Vec::new(), denied: true };
        let (vector, rest) = match kind {
            Kind::AVC => vector(rest)?,
            // The kernel puts what a program said between quotes: the vector is in there.
            Kind::USER_AVC => {
                let (head, said) = rest.split_once("msg='")?;
                record.add_fields(head);
                vector(said.rsplit_once('\'').map_or(said, |(inner, _)| inner))?
            }
            _ => (Vector { denied: true, permissions: Vec::new() }, rest),
        };
        (record.denied, record.permissions) = (vector.denied, vector.permissions);
        record.add_fields(rest);
        Some(record)
    }

    fn add_fields(&mut self, mut rest: &str) {
        while self.fields.len() < MAX_FIELDS {
            rest = rest.trim_start_matches([' ', ':']);
            let Some(end) = rest.find(['=', ' ']) else { return };
            let (key, after) = rest.split_at(end);
            let Some(after) = after.strip_prefix('=') else {
                rest = after;
                continue;
            };
            let (raw, left) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => after.split_once(' ').unwrap_or((after, "")),
            };
            let value = if after.starts_with('"') { raw.to_owned() } else { decoded(key, raw) };
            // The first counts: what comes later in a line may be a name that somebody chose.
            if self.field(key).is_none() {
                self.fields.push((key.to_owned(), value));
            }
            rest = left;
        }
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A decimal number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    /// A hexadecimal number, with or without `0x`.
    pub fn hex(&self, name: &str) -> Option<u64> {
        let text = self.field(name)?;
        u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    }
}

/// The part that is one record, as text; nothing for what is too long to be one.
fn text(line: &[u8]) -> Option<String> {
    let line = line.split(|byte| *byte == ENRICHED).next()?;
    (line.len() <= MAX_LINE).then(|| String::from_utf8_lossy(line).trim_end().to_owned())
}

/// `audit(S.MMM:SERIAL): ` at the beginning.
fn stamp(line: &str) -> Option<(Stamp, &str)> {
    let (inside, rest) = line.strip_prefix("audit(")?.split_once("):")?;
    let (time, serial) = inside.split_once(':')?;
    let (seconds, millis) = time.split_once('.')?;
    let stamp = Stamp { seconds: seconds.parse().ok()?, millis: millis.parse().ok()?, serial: serial.parse().ok()? };
    (stamp.millis < 1000).then_some((stamp, rest))
}

struct Vector {
    denied: bool,
    permissions: Vec<String>,
}

/// `avc:  denied  { read open } for  …`
fn vector(line: &str) -> Option<(Vector, &str)> {
    let (word, rest) = line.trim_start().strip_prefix("avc:")?.trim_start().split_once(' ')?;
    let denied = match word {
        "denied" => true,
        "granted" => false,
        _ => return None,
    };
    let (inside, rest) = rest.trim_start().strip_prefix('{')?.split_once('}')?;
    let permissions = inside.split_whitespace().take(64).map(str::to_owned).collect();
    let rest = rest.trim_start().strip_prefix("for ").unwrap_or(rest);
    Some((Vector { denied, permissions }, rest))
}

/// audit_log_untrustedstring() writes in hexadecimal what holds a quote, a space or a control character.
fn decoded(key: &str, raw: &str) -> String {
    const UNTRUSTED: [&str; 10] =
        ["comm", "exe", "path", "name", "cwd", "proctitle", "ocomm", "dev", "invalid_context", "data"];
    let hex =
        raw.len() >= 2 && raw.len().is_multiple_of(2) && raw.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if !UNTRUSTED.contains(&key) || !hex {
        return raw.to_owned();
    }
    let digit = |byte: u8| if byte.is_ascii_digit() { byte - b'0' } else { byte - b'A' + 10 };
    let bytes: Vec<u8> = raw.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    // The arguments of a command line end with a NUL each.
    let bytes: Vec<u8> = bytes.into_iter().map(|b| if b == 0 && key == "proctitle" { b' ' } else { b }).collect();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

/// How many records the kernel says that it threw away, if this line of its log says so.
pub fn lost(line: &str) -> Option<u64> {
    // net/ratelimit: `kauditd_printk_skb: 108 callbacks suppressed`; kernel/audit.c: `audit: audit_lost=3 …`
    if let Some(rest) = line.strip_prefix("kauditd_printk_skb: ") {
        return rest.split(' ').next()?.parse().ok();
    }
    let rest = line.strip_prefix("audit: ")?;
    if rest.starts_with("rate limit exceeded") || rest.starts_with("backlog limit exceeded") {
        return Some(1);
    }
    // `audit_lost=` counts from boot; each line stands for one more at least.
    rest.starts_with("audit_lost=").then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECCOMP: &str = "audit: type=1326 audit(1795402652.604:8083): auid=4294967295 uid=10021356 gid=10021356 ses=4294967295 pid=32114 comm=\"io\" exe=\"/x/casemate-runner\" sig=31 arch=c000003e syscall=47 compat=0 ip=0x7f647d14f1b9 code=0x80000000";

    #[test]
    fn the_kernels_log_auditds_and_the_journals_are_one() {
        let kernel = Record::of_kernel(SECCOMP.as_bytes()).unwrap();
        assert_eq!(kernel.stamp, Stamp { seconds: 1_795_402_652, millis: 604, serial: 8083 });
        assert_eq!(
            (kernel.kind, kernel.number("pid"), kernel.hex("code")),
            (Kind::SECCOMP, Some(32114), Some(1 << 31))
        );
        let (_, fields) = SECCOMP.split_once("): ").unwrap();
        let raw = format!("node=h type=SECCOMP msg=audit(1795402652.604:8083): {fields}\x1dAUID=\"unset\" UID=\"x\"\n");
        assert_eq!(Record::of_auditd(raw.as_bytes()).unwrap(), kernel);
        let unknown = format!("type=UNKNOWN[1326] msg=audit(1795402652.604:8083): {fields}");
        assert_eq!(Record::of_auditd(unknown.as_bytes()).unwrap(), kernel);
        let message = format!("SECCOMP {fields}");
        assert_eq!(Record::of_journal(message.as_bytes(), 1326, 1_795_402_652_604_000, 8083).unwrap(), kernel);
    }

    #[test]
    fn a_vector_is_taken_apart() {
        let line = "type=AVC msg=audit(1.2:3): avc:  denied  { read open } for  pid=7 comm=\"io\" path=2F746D702F6120622E696D67 dev=\"sda1\" ino=5 scontext=u:r:a:s0:c1,c2 tcontext=u:o:b:s0 tclass=file permissive=0";
        let avc = Record::of_auditd(line.as_bytes()).unwrap();
        assert_eq!(avc.permissions, ["read", "open"]);
        assert_eq!((avc.denied, avc.field("path"), avc.field("tclass")), (true, Some("/tmp/a b.img"), Some("file")));
        let user = "type=USER_AVC msg=audit(1.2:3): pid=1 uid=0 subj=u:r:i:s0 msg='avc:  denied  { start } for auid=n/a scontext=u:r:a:s0 tcontext=u:r:b:s0 tclass=service permissive=0 exe=\"/usr/bin/systemd\"'";
        let user = Record::of_auditd(user.as_bytes()).unwrap();
        assert_eq!((user.number("pid"), user.field("tclass")), (Some(1), Some("service")));
        assert_eq!(user.permissions, ["start"]);
    }

    /// A program's name cannot make fields of its own: it is in quotes or in hexadecimal, and the first of a name counts.
    #[test]
    fn a_name_cannot_say_that_it_is_another() {
        let name = "x\" uid=0 comm=\"casemate-runner".as_bytes();
        let hex: String = name.iter().map(|b| format!("{b:02X}")).collect();
        let line = format!("audit: type=1326 audit(1.2:3): uid=7 pid=9 comm={hex} exe=\"/a uid=0\" sig=31");
        let record = Record::of_kernel(line.as_bytes()).unwrap();
        assert_eq!((record.field("uid"), record.field("exe")), (Some("7"), Some("/a uid=0")));
        assert_eq!(record.field("comm").map(str::as_bytes), Some(name));
        let twice = "audit: type=1326 audit(1.2:3): uid=7 uid=0";
        assert_eq!(Record::of_kernel(twice.as_bytes()).unwrap().field("uid"), Some("7"));
    }

    #[test]
    fn what_is_no_record_is_none() {
        for bad in [
            "",
            "audit:",
            "audit: type=1326",
            "audit: type=1326 audit(1:2): x=y",
            "audit: type=1326 audit(1.9999:2): x=y",
            "audit: type=1326 audit(99999999999999999999.1:2): x=y",
            "audit: type=1334 audit(1.2:3): prog-id=1",
            "type=AVC msg=audit(1.2:3): avc: denied",
            "type=AVC msg=audit(1.2:3): avc:  denied  { read for",
            "type=USER_AVC msg=audit(1.2:3): pid=1",
        ] {
            assert_eq!(Record::of_kernel(bad.as_bytes()), None, "{bad}");
            assert_eq!(Record::of_auditd(bad.as_bytes()), None, "{bad}");
        }
        let long = format!("audit: type=1326 audit(1.2:3): comm=\"{}\"", "a".repeat(MAX_LINE));
        assert_eq!(Record::of_kernel(long.as_bytes()), None);
    }

    #[test]
    fn lost_records_are_counted() {
        assert_eq!(lost("kauditd_printk_skb: 108 callbacks suppressed"), Some(108));
        assert_eq!(lost("audit: audit_lost=3 audit_rate_limit=0 audit_backlog_limit=64"), Some(1));
        assert_eq!(lost("audit: backlog limit exceeded"), Some(1));
        assert_eq!(lost("other_function: 5 callbacks suppressed"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_a_panic(line in proptest::collection::vec(proptest::num::u8::ANY, 0..400), cut in 0usize..300) {
            let _ = Record::of_kernel(&line);
            let _ = Record::of_auditd(&line);
            let _ = Record::of_journal(&line, 1400, u64::MAX, 1);
            // Real lines with noise in them get further.
            let mut mixed = SECCOMP.as_bytes()[..cut.min(SECCOMP.len())].to_vec();
            mixed.extend(&line);
            let _ = Record::of_kernel(&mixed);
            let mut avc = b"type=AVC msg=audit(1.2:3): avc:  denied  { read } for ".to_vec();
            avc.extend(&line);
            let _ = Record::of_auditd(&avc);
            let _ = lost(&String::from_utf8_lossy(&line));
        }
    }
}
