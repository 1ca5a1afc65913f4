use casemate_spec::Posture;
use casemate_wire::record::{ExitCause, ExitReport, Finding, Phase, ProcessName, SandboxRecord};
use serde_json::{Value, json};

use super::*;
use crate::chain::{Header, Problem};
use crate::parts::{File, HIDDEN, Policy, SpecText};

fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32]).unwrap()
}

fn record(name: &str) -> SandboxRecord {
    SandboxRecord {
        version: casemate_wire::record::VERSION,
        name: name.into(),
        phase: Phase::Stopped,
        posture: Posture::Hardened,
        allow_reduced: None,
        warnings: vec![],
        created: 1_800_000_000,
        boot_id: "b0071d00-0000-4000-8000-000000000001".into(),
        command: vec!["/bin/true".into()],
        detached: false,
        cpus: 1,
        memory: 4 << 20,
        warden: ProcessName { pid: 10, start_time: 100 },
        runner: Some(ProcessName { pid: 11, start_time: 101 }),
        uid: 10_000_000,
        categories: None,
        label: None,
        profile: None,
        labels: vec![],
        selinux: None,
        findings: vec![Finding {
            layer: "seccomp".into(),
            what: "Seccomp of thread main".into(),
            expected: "2".into(),
            seen: "2".into(),
            ok: true,
        }],
        cgroups: vec![],
        landlock_abi: 7,
        descriptors: vec![],
        rlimits: Default::default(),
        timings: vec![],
        exit: Some(ExitReport { cause: ExitCause::PowerOff, status: Some(0), detail: None }),
    }
}

fn evidence(name: &str) -> Evidence {
    let missing = |why: &str| why.to_owned();
    Evidence {
        version: parts::VERSION,
        sandbox: name.into(),
        time: 1_800_000_100,
        nonce: Some("4711".into()),
        casemate: "0.1.0".into(),
        spec: Part::Taken(SpecText {
            text: format!(r#"{{"bare":true,"env":{{"TOKEN":"{HIDDEN}"}}}}"#),
            bytes: 50,
            digest: Some(Digest::salted("00ff", b"the bytes")),
            hidden: [("TOKEN".to_owned(), Some(Digest::salted("00ff", b"secret")))].into(),
            salt: Some("00ff".into()),
        }),
        start: Part::Missing(missing("no start.json")),
        record: record(name),
        attested: Part::Missing(missing("it has ended")),
        filters: Part::Missing(missing("it has ended")),
        files: vec![
            File {
                name: "kernel".into(),
                path: "/boot/vmlinuz \u{1b}[31m".into(),
                read_only: true,
                dev: 1,
                ino: 2,
                size: 3,
                replaced: false,
                via: "path".into(),
                digest: Part::Taken(Digest::of(b"abc")),
            },
            File {
                name: "disk.data".into(),
                path: "/data".into(),
                read_only: false,
                dev: 1,
                ino: 3,
                size: 1 << 20,
                replaced: false,
                via: "path".into(),
                digest: Part::Missing(missing("it is writable")),
            },
        ],
        programs: vec![],
        policy: Part::Taken(Policy {
            loaded: Part::Taken(Digest::of(b"policy")),
            enforcing: Part::Taken(true),
            module: Default::default(),
            bytes: None,
        }),
        audit: Part::Missing(missing("not asked for")),
    }
}

fn seal(sequence: u64, previous: Digest, by: &KeyPair) -> Seal {
    Seal {
        sequence,
        previous,
        time: 1_800_000_100 + sequence,
        boot_id: "b0071d00-0000-4000-8000-000000000001".into(),
        host: "host-1".into(),
        signer: by.public(),
    }
}

/// A bundle and the link that its record holds.
fn sealed(evidence: Evidence, sequence: u64, previous: Digest, by: &KeyPair) -> (Vec<u8>, Link) {
    let (envelope, _) = Envelope::seal(&Statement::new(seal(sequence, previous, by), evidence), by).unwrap();
    let file = envelope.to_file().unwrap();
    let link = Link::of(&Bundle::open(&file, Some(by.public())).unwrap());
    (file, link)
}

fn one() -> Vec<u8> {
    sealed(evidence("vm"), 1, key(1).public().id(), &key(1)).0
}

/// `n` bundles and their chain's file.
fn host(n: u64, by: &KeyPair) -> (Vec<Bundle>, Vec<Vec<u8>>) {
    let mut previous = by.public().id();
    let mut lines = vec![Header { version: chain::VERSION, signer: by.public() }.line().unwrap()];
    let mut bundles = Vec::new();
    for sequence in 1..=n {
        let (file, link) = sealed(evidence(&format!("vm{sequence}")), sequence, previous, by);
        previous = link.digest().unwrap();
        lines.push(Record::sign(link, by).unwrap().line().unwrap());
        bundles.push(Bundle::open(&file, None).unwrap());
    }
    (bundles, lines)
}

fn problems(lines: &[&Vec<u8>]) -> Vec<Problem> {
    let file: Vec<u8> = lines.iter().flat_map(|line| line.iter().copied()).collect();
    Chain::parse(&file, None).unwrap().problems()
}

#[test]
fn the_form_is_the_golden_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/golden.json");
    let file = one();
    if std::env::var_os("CASEMATE_BLESS").is_some() {
        std::fs::write(path, &file).unwrap();
    }
    let golden = std::fs::read(path).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&file),
        String::from_utf8_lossy(&golden),
        "the form changed: bump parts::VERSION, run with CASEMATE_BLESS=1"
    );
    let statement = Bundle::open(&golden, Some(key(1).public())).unwrap().statement;
    assert_eq!(statement.statement_type, "https://in-toto.io/Statement/v1");
    assert_eq!(statement.predicate_type, "https://casemate.dev/evidence/v1");
    let names: Vec<&str> = statement.subject.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["sandbox:vm", "file:kernel", "policy"]);
}

#[test]
fn every_single_bit_counts() {
    let file = one();
    Bundle::open(&file, Some(key(1).public())).unwrap();
    for at in 0..file.len() {
        // Every bit of the envelope's own bytes; of the long payload one of each byte.
        let outside = at < 256 || at + 512 > file.len();
        for bit in (0..8).filter(|bit| outside || *bit == at % 8) {
            let mut forged = file.clone();
            forged[at] ^= 1 << bit;
            assert!(Bundle::open(&forged, Some(key(1).public())).is_err(), "byte {at}, bit {bit}");
            assert!(bit != at % 8 || Bundle::open(&forged, None).is_err(), "byte {at}, bit {bit}, self-asserted");
        }
    }
}

#[test]
fn truncated_and_extended_bundles_are_refused() {
    let file = one();
    for length in 0..file.len() {
        assert!(Bundle::open(&file[..length], None).is_err(), "{length} bytes");
    }
    for more in [&b"\n"[..], b" ", b"{}", b"\0", &file] {
        assert!(Bundle::open(&[&file[..], more].concat(), None).is_err());
    }
    assert!(matches!(Bundle::open(&vec![b' '; MAX_BUNDLE + 1], None), Err(Refused::Size { .. })));
}

#[test]
fn another_spelling_of_the_same_is_refused() {
    let file = String::from_utf8(one()).unwrap();
    let value: Value = serde_json::from_str(&file).unwrap();
    let (payload, sig) = (value["payload"].as_str().unwrap(), value["signatures"][0]["sig"].as_str().unwrap());
    let keyid = value["signatures"][0]["keyid"].as_str().unwrap();
    let same = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|v| v == value);
    for (what, forged) in [
        ("white space", file.replace("\":", "\": ")),
        ("indented", serde_json::to_string_pretty(&value).unwrap() + "\n"),
        ("an escape", file.replace("payloadType", "payload\\u0054ype")),
        (
            "order",
            format!(
                "{{\"payloadType\":{},\"payload\":\"{payload}\",\"signatures\":{}}}\n",
                value["payloadType"], value["signatures"]
            ),
        ),
        ("a repeated key", file.replacen("{\"payload\"", "{\"payload\":\"AAAA\",\"payload\"", 1)),
        (
            "a repeated key, the same",
            file.replacen("{\"payload\"", &format!("{{\"payload\":\"{payload}\",\"payload\""), 1),
        ),
    ] {
        assert_ne!(forged, file, "{what}");
        assert!(same(&forged), "{what} is meant to say the same");
        assert!(Bundle::open(forged.as_bytes(), None).is_err(), "{what}");
    }
    // Bits of the last base64 digit that stand for nothing; no padding; the URL's alphabet.
    assert!(sig.ends_with("=="));
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let last = sig.as_bytes()[sig.len() - 3];
    let slack = alphabet[alphabet.iter().position(|c| *c == last).unwrap() ^ 1] as char;
    let slackened = format!("{}{slack}==", &sig[..sig.len() - 3]);
    for other in
        [slackened, sig.trim_end_matches('=').to_owned(), sig.replace('+', "-").replace('/', "_"), format!("{sig}\\n")]
    {
        let forged = file.replace(sig, &other);
        assert!(forged == file || Bundle::open(forged.as_bytes(), None).is_err(), "{other}");
    }
    assert!(Bundle::open(file.replace(keyid, &keyid.to_uppercase()).as_bytes(), None).is_err());
}

/// An envelope around any payload, signed by this key with this type.
fn envelope(payload: &[u8], signed_type: &str, told_type: &str, by: &KeyPair) -> Envelope {
    use base64::Engine;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let sig = base64(&by.sign(&dsse::pae(signed_type, payload)));
    let signatures = vec![dsse::Signature { keyid: by.public().id().to_string(), sig }];
    Envelope { payload: base64(payload), payload_type: told_type.into(), signatures }
}

#[test]
fn forgeries_are_refused_for_what_they_are() {
    let statement = Statement::new(seal(1, key(1).public().id(), &key(1)), evidence("vm"));
    let payload = canonical::bytes("x", &statement).unwrap();
    let open = |envelope: &Envelope, key| Bundle::open(&envelope.to_file().unwrap(), key);
    let (ours, theirs) = (key(1), key(2));
    let good = envelope(&payload, dsse::PAYLOAD_TYPE, dsse::PAYLOAD_TYPE, &ours);
    open(&good, Some(ours.public())).unwrap();

    // Signed by another key, under its own id and under ours.
    let foreign = envelope(&payload, dsse::PAYLOAD_TYPE, dsse::PAYLOAD_TYPE, &theirs);
    assert!(matches!(open(&foreign, None), Err(Refused::Form { what: "the key id", .. })));
    let mut swapped = foreign.clone();
    swapped.signatures[0].keyid = ours.public().id().to_string();
    assert!(matches!(open(&swapped, Some(ours.public())), Err(Refused::Signature(_))));
    // Whole, but of a key of the forger's own: told by the given key only.
    let own = Statement::new(seal(1, theirs.public().id(), &theirs), evidence("vm"));
    let (own, _) = Envelope::seal(&own, &theirs).unwrap();
    open(&own, None).unwrap();
    assert!(matches!(open(&own, Some(ours.public())), Err(Refused::Key { .. })));
    // The key id of another key.
    let mut keyid = good.clone();
    keyid.signatures[0].keyid = theirs.public().id().to_string();
    assert!(open(&keyid, Some(ours.public())).is_err());
    // A payload type that was not signed, and a record's signature.
    let mut kind = good.clone();
    kind.payload_type = "application/json".into();
    assert!(matches!(open(&kind, None), Err(Refused::Kind { .. })));
    let crossed = envelope(&payload, chain::RECORD_TYPE, dsse::PAYLOAD_TYPE, &ours);
    assert!(matches!(open(&crossed, None), Err(Refused::Signature(_))));
    // No signature, two signatures.
    for signatures in [vec![], vec![good.signatures[0].clone(), good.signatures[0].clone()]] {
        let forged = Envelope { signatures, ..good.clone() };
        assert!(matches!(open(&forged, None), Err(Refused::Form { .. })));
    }
}

/// Signed by the right key all the same: what a signer that is not our jailer might sign.
#[test]
fn payloads_of_another_form_are_refused() {
    let statement = Statement::new(seal(1, key(1).public().id(), &key(1)), evidence("vm"));
    let text = String::from_utf8(canonical::bytes("x", &statement).unwrap()).unwrap();
    let with = |change: fn(&mut Value)| {
        let mut value = serde_json::to_value(&statement).unwrap();
        change(&mut value);
        String::from_utf8(canonical::bytes("x", &value).unwrap()).unwrap()
    };
    for (what, payload) in [
        ("white space", text.replacen(':', ": ", 1)),
        ("a repeated key", text.replacen("{\"_type\"", "{\"_type\":\"https://in-toto.io/Statement/v1\",\"_type\"", 1)),
        ("an unknown field", with(|v| v["predicate"]["evidence"]["extra"] = json!(1))),
        ("an unknown field of a record's", with(|v| v["predicate"]["evidence"]["record"]["extra"] = json!(1))),
        ("another predicate", with(|v| v["predicateType"] = json!("https://slsa.dev/provenance/v1"))),
        ("another statement", with(|v| v["_type"] = json!("https://in-toto.io/Statement/v0.1"))),
        ("a subject of something else", with(|v| v["subject"][1]["digest"]["sha256"] = json!("0".repeat(64)))),
        ("no subject", with(|v| v["subject"] = json!([]))),
        ("a float", with(|v| v["predicate"]["seal"]["time"] = json!(1)).replace("\"time\":1}", "\"time\":1.0}")),
        ("nothing", String::new()),
        ("null", "null".into()),
        ("depth", "[".repeat(100_000)),
    ] {
        let forged = envelope(payload.as_bytes(), dsse::PAYLOAD_TYPE, dsse::PAYLOAD_TYPE, &key(1));
        assert!(Bundle::open(&forged.to_file().unwrap(), Some(key(1).public())).is_err(), "{what}");
    }
}

#[test]
fn only_our_evidence_passes_its_check() {
    evidence("vm").check().unwrap();
    let version = Evidence { version: 2, ..evidence("vm") };
    let other = Evidence { sandbox: "other".into(), ..evidence("vm") };
    let nonce = Evidence { nonce: Some("x".repeat(129)), ..evidence("vm") };
    for bad in [version, other, nonce] {
        assert!(bad.check().is_err());
    }
}

#[test]
fn a_whole_chain_has_no_problem_and_each_wound_has_its_name() {
    let (bundles, lines) = host(5, &key(1));
    let [head, one, two, three, four, five] = &lines[..] else { unreachable!("five records") };
    assert_eq!(problems(&[head, one, two, three, four, five]), []);
    assert_eq!(problems(&[head]), []);
    assert_eq!(problems(&[head, one, two, four, five]), [Problem::Missing { from: 3, to: 3 }]);
    assert_eq!(problems(&[head, three, four, five]), [Problem::Missing { from: 1, to: 2 }]);
    assert_eq!(problems(&[head, one, two, two, three]), [Problem::Repeated(2)]);
    assert_eq!(problems(&[head, one, three, two]), [Problem::Misplaced { sequence: 2, after: 3 }]);
    // Signed by the host's key, but of a second history.
    let (other, _) = sealed(evidence("forked"), 3, Link::of(&bundles[1]).digest().unwrap(), &key(1));
    let other = Bundle::open(&other, None).unwrap();
    let forked = Record::sign(Link::of(&other), &key(1)).unwrap().line().unwrap();
    assert_eq!(problems(&[head, one, two, three, &forked, four]), [Problem::Forked(3)]);
    assert_eq!(problems(&[head, one, two, &forked, four, five]), [Problem::Unlinked(4)]);

    let whole = Chain::parse(&lines.concat(), Some(key(1).public())).unwrap();
    assert_eq!(whole.judge(&bundles), []);
    assert_eq!(whole.judge(std::slice::from_ref(&other)), [Problem::Forked(3)]);
    let cut = Chain::parse(&lines[..4].concat(), None).unwrap();
    assert_eq!(cut.judge(&bundles[4..]), [Problem::Beyond { sequence: 5, ends: 3 }]);
    let gap = Chain::parse(&[&head[..], one, three].concat(), None).unwrap();
    assert_eq!(gap.judge(&bundles[1..2]), [Problem::NoRecord(2)]);
    // The bundles alone.
    assert_eq!(chain::among(&bundles), []);
    assert_eq!(chain::among(&[bundles[3].clone(), bundles[2].clone()]), []);
    assert_eq!(chain::among(&[bundles[0].clone(), bundles[3].clone()]), [Problem::Missing { from: 2, to: 3 }]);
    assert_eq!(chain::among(&[bundles[0].clone(), bundles[0].clone()]), [Problem::Repeated(1)]);
    assert_eq!(
        chain::among(&[other, bundles[3].clone(), bundles[2].clone()]),
        [Problem::Forked(3), Problem::Unlinked(4)]
    );
}

#[test]
fn a_chain_file_is_read_strictly() {
    let (_, lines) = host(2, &key(1));
    let whole = lines.concat();
    for at in 0..whole.len() {
        let mut forged = whole.clone();
        forged[at] ^= 1;
        assert!(Chain::parse(&forged, Some(key(1).public())).is_err(), "byte {at}");
    }
    for length in 1..whole.len() {
        let cut = Chain::parse(&whole[..length], None);
        // A chain that is cut at a line's end is whole as far as it goes; a bundle beyond its end tells.
        assert!(cut.is_err() || whole[length - 1] == b'\n', "{length} bytes");
    }
    assert!(Chain::parse(&whole, Some(key(2).public())).is_err());
    // A foreign record, and a bundle's signature on a record.
    let (_, foreign) = host(2, &key(2));
    assert!(Chain::parse(&[&lines[0][..], &foreign[1]].concat(), None).is_err());
}

/// An independent program reads the same key and signature.
#[test]
fn openssl_agrees() {
    use base64::Engine;
    let openssl = |args: &[&str], dir: &std::path::Path| {
        std::process::Command::new("openssl").args(args).current_dir(dir).output().ok()
    };
    let temp = tempfile::tempdir().unwrap();
    if openssl(&["version"], temp.path()).is_none_or(|version| !version.status.success()) {
        eprintln!("skipped: there is no openssl here");
        return;
    }
    let envelope: Envelope = serde_json::from_slice(&one()).unwrap();
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(temp.path().join(name), bytes).unwrap();
    let signed = dsse::pae(&envelope.payload_type, &decode(&envelope.payload));
    write("key.pub.pem", key(1).public().to_pem().as_bytes());
    write("key", KeyPair::pem(&[1; 32]).as_bytes());
    write("signed", &signed);
    write("sig", &decode(&envelope.signatures[0].sig));
    let verify =
        ["pkeyutl", "-verify", "-pubin", "-inkey", "key.pub.pem", "-rawin", "-in", "signed", "-sigfile", "sig"];
    let said = openssl(&verify, temp.path()).unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let der = openssl(&["pkey", "-pubin", "-in", "key.pub.pem", "-outform", "DER"], temp.path()).unwrap().stdout;
    assert_eq!(Digest::of(&der), key(1).public().id(), "the key's id");
    let public = openssl(&["pkey", "-in", "key", "-pubout"], temp.path()).unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&public), key(1).public().to_pem(), "the private key's form");
    write("signed", &[&signed[..], b" "].concat());
    assert!(!openssl(&verify, temp.path()).unwrap().status.success(), "a changed payload");
}
