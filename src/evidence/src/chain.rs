//! The host's chain: one signed record per sealed bundle, each with the digest of the one before.
//!
//! A file of lines: a header with the signer's key, then the records. The link from one to the next is over what is signed,
//! so a bundle alone tells what its record is, and bundles without the chain can be held against each other.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::{Bundle, Digest, KeyPair, PublicKey, Refused, canonical, dsse};

/// Another type than a bundle's, so that neither's signature serves for the other.
pub const RECORD_TYPE: &str = "application/vnd.casemate.evidence-chain+json";
pub const VERSION: u32 = 1;
/// Most bytes of one line, without its end.
pub const MAX_LINE: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub version: u32,
    pub signer: PublicKey,
}

/// What is signed of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub sequence: u64,
    /// [`Link::digest`] of the one before; of the first, the key's id.
    pub previous: Digest,
    /// Seconds since the epoch.
    pub time: u64,
    pub boot_id: String,
    pub sandbox: String,
    /// Of the statement.
    pub payload: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub link: Link,
    pub sig: String,
}

impl Link {
    pub fn digest(&self) -> Result<Digest, Refused> {
        canonical::bytes("the record", self).map(|bytes| Digest::of(&bytes))
    }

    /// The record that the chain must hold of this bundle.
    pub fn of(bundle: &Bundle) -> Link {
        let (seal, evidence) = (&bundle.statement.predicate.seal, &bundle.statement.predicate.evidence);
        Link {
            sequence: seal.sequence,
            previous: seal.previous.clone(),
            time: seal.time,
            boot_id: seal.boot_id.clone(),
            sandbox: evidence.sandbox.clone(),
            payload: bundle.payload.clone(),
        }
    }
}

impl Header {
    /// Its line, end included.
    pub fn line(&self) -> Result<Vec<u8>, Refused> {
        canonical::bytes("the chain's header", self).map(ended)
    }

    pub fn parse(line: &[u8]) -> Result<Header, Refused> {
        let header: Header = canonical::parse("the chain's header", line)?;
        if header.version == VERSION {
            return Ok(header);
        }
        let (seen, known) = (header.version.to_string(), VERSION.to_string());
        Err(Refused::Kind { what: "the chain's version", seen, known })
    }
}

impl Record {
    pub fn sign(link: Link, key: &KeyPair) -> Result<Record, Refused> {
        let bytes = canonical::bytes("the record", &link)?;
        let sig = STANDARD.encode(key.sign(&dsse::pae(RECORD_TYPE, &bytes)));
        Ok(Record { link, sig })
    }

    /// Its line, end included.
    pub fn line(&self) -> Result<Vec<u8>, Refused> {
        canonical::bytes("the record", self).map(ended)
    }

    /// Reads a line without its end, and checks its signature.
    pub fn parse(line: &[u8], key: PublicKey) -> Result<Record, Refused> {
        if line.len() > MAX_LINE {
            return Err(Refused::Size { what: "a record", most: MAX_LINE });
        }
        let record: Record = canonical::parse("the record", line)?;
        let form = |e: base64::DecodeError| Refused::Form { what: "a record's signature", why: e.to_string() };
        let sig = STANDARD.decode(&record.sig).map_err(form)?;
        key.verify(&dsse::pae(RECORD_TYPE, &canonical::bytes("the record", &record.link)?), &sig)?;
        Ok(record)
    }
}

fn ended(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(b'\n');
    bytes
}

/// An exported chain whose every line is its signer's; whether they are all there is told by [`Chain::problems`].
#[derive(Debug, Clone)]
pub struct Chain {
    pub signer: PublicKey,
    pub records: Vec<Record>,
}

impl Chain {
    pub fn parse(file: &[u8], key: Option<PublicKey>) -> Result<Chain, Refused> {
        let text = file.strip_suffix(b"\n").ok_or_else(|| Refused::Form {
            what: "the chain",
            why: "its last line has no end: it was cut off, or its host died while it wrote".into(),
        })?;
        let mut lines = text.split(|b| *b == b'\n');
        let signer = Header::parse(lines.next().unwrap_or_default())?.signer;
        if let Some(key) = key.filter(|key| *key != signer) {
            return Err(Refused::Key { seen: signer.id(), wanted: key.id() });
        }
        let read = |(at, line)| {
            let form = |error: Refused| Refused::Form { what: "the chain", why: format!("line {}: {error}", at + 2) };
            Record::parse(line, signer).map_err(form)
        };
        let records = lines.enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Chain { signer, records })
    }

    /// What is missing, doubled, out of order or of another chain.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut seen: BTreeMap<u64, &Link> = BTreeMap::new();
        let mut last = 0;
        for Record { link, .. } in &self.records {
            match seen.get(&link.sequence) {
                Some(other) if *other == link => problems.push(Problem::Repeated(link.sequence)),
                Some(_) => problems.push(Problem::Forked(link.sequence)),
                None => {
                    seen.insert(link.sequence, link);
                    if link.sequence < last {
                        problems.push(Problem::Misplaced { sequence: link.sequence, after: last });
                    }
                    last = last.max(link.sequence);
                }
            }
        }
        problems.extend(missing(seen.keys().copied(), 0));
        let first = seen.get(&1).filter(|link| link.previous != self.signer.id());
        problems.extend(first.map(|_| Problem::Unlinked(1)));
        problems.extend(unlinked(&seen));
        problems
    }

    /// The chain beside bundles of the same host: each must have its record. Not whether there is a bundle to each record.
    pub fn judge(&self, bundles: &[Bundle]) -> Vec<Problem> {
        let mut problems = Vec::new();
        let ends = self.records.iter().map(|r| r.link.sequence).max().unwrap_or(0);
        for bundle in bundles {
            let link = Link::of(bundle);
            let sequence = link.sequence;
            let same: Vec<&Link> = self.records.iter().map(|r| &r.link).filter(|l| l.sequence == sequence).collect();
            match same[..] {
                [] if sequence > ends => problems.push(Problem::Beyond { sequence, ends }),
                [] => problems.push(Problem::NoRecord(sequence)),
                _ if same.contains(&&link) => {}
                _ => problems.push(Problem::Forked(sequence)),
            }
        }
        problems
    }
}

/// Several bundles of one host, without its chain, in any order.
pub fn among(bundles: &[Bundle]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut seen: BTreeMap<u64, Link> = BTreeMap::new();
    for bundle in bundles {
        let link = Link::of(bundle);
        match seen.get(&link.sequence) {
            Some(other) if *other == link => problems.push(Problem::Repeated(link.sequence)),
            Some(_) => problems.push(Problem::Forked(link.sequence)),
            None => drop(seen.insert(link.sequence, link)),
        }
    }
    let lowest = seen.keys().next().copied().unwrap_or(1);
    problems.extend(missing(seen.keys().copied(), lowest.saturating_sub(1)));
    problems.extend(unlinked(&seen.iter().map(|(sequence, link)| (*sequence, link)).collect()));
    problems
}

/// Gaps above `from`.
fn missing(sequences: impl Iterator<Item = u64>, from: u64) -> Vec<Problem> {
    let mut last = from;
    let mut gaps = Vec::new();
    for sequence in sequences {
        if sequence > last.saturating_add(1) {
            gaps.push(Problem::Missing { from: last + 1, to: sequence - 1 });
        }
        last = sequence;
    }
    gaps
}

/// Neighbours of which the later names another predecessor.
fn unlinked(links: &BTreeMap<u64, &Link>) -> Vec<Problem> {
    let before = |link: &Link| links.get(&link.sequence.checked_sub(1)?)?.digest().ok();
    let wrong = links.values().filter(|link| before(link).is_some_and(|digest| digest != link.previous));
    wrong.map(|link| Problem::Unlinked(link.sequence)).collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    Missing { from: u64, to: u64 },
    Repeated(u64),
    Misplaced { sequence: u64, after: u64 },
    Forked(u64),
    Unlinked(u64),
    NoRecord(u64),
    Beyond { sequence: u64, ends: u64 },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing { from, to } if from == to => write!(f, "record {from} is missing"),
            Problem::Missing { from, to } => write!(f, "records {from} to {to} are missing"),
            Problem::Repeated(n) => write!(f, "record {n} is given twice"),
            Problem::Misplaced { sequence, after } => write!(f, "record {sequence} stands after record {after}"),
            Problem::Forked(n) => write!(f, "two different records {n} are signed: the host's chain was forked"),
            Problem::Unlinked(n) => {
                write!(f, "record {n} does not follow the one before: that was replaced, or it is of another chain")
            }
            Problem::NoRecord(n) => write!(f, "the chain has no record {n}: it was taken out"),
            Problem::Beyond { sequence, ends } => write!(
                f,
                "the bundle is number {sequence} and the chain ends at {ends}: its end was cut off, or it was exported before"
            ),
        }
    }
}
