//! The in-toto statement, v1 (https://github.com/in-toto/attestation): subjects with their digests, and our predicate.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Evidence, PublicKey, Refused, canonical};

pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
pub const PREDICATE_TYPE: &str = "https://casemate.dev/evidence/v1";
pub const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    #[serde(rename = "_type")]
    pub statement_type: String,
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    pub subject: Vec<Subject>,
    pub predicate: Predicate,
}

/// An in-toto ResourceDescriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    pub name: String,
    /// `sha256` to its hexadecimal digits.
    pub digest: BTreeMap<String, Digest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicate {
    pub seal: Seal,
    pub evidence: Evidence,
}

/// What the jailer adds when it signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Position in the host's chain, from 1.
    pub sequence: u64,
    /// Digest of the record before ([`crate::Record::digest`]); of the first, the key's id.
    pub previous: Digest,
    /// Seconds since the epoch.
    pub time: u64,
    pub boot_id: String,
    /// The host's name in owner records on files, made up once.
    pub host: String,
    pub signer: PublicKey,
}

impl Statement {
    pub fn new(seal: Seal, evidence: Evidence) -> Statement {
        Statement {
            statement_type: STATEMENT_TYPE.into(),
            predicate_type: PREDICATE_TYPE.into(),
            subject: subjects(&evidence),
            predicate: Predicate { seal, evidence },
        }
    }

    /// Reads a payload in its one spelling; types and versions are those that are known here.
    pub fn parse(payload: &[u8]) -> Result<Statement, Refused> {
        kind(payload)?;
        let statement: Statement = canonical::parse("the statement", payload)?;
        if statement.subject == subjects(&statement.predicate.evidence) {
            Ok(statement)
        } else {
            Err(Refused::Subjects)
        }
    }
}

/// Told first: another predicate is not a damaged one.
fn kind(payload: &[u8]) -> Result<(), Refused> {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "_type")]
        statement: String,
        #[serde(rename = "predicateType")]
        predicate: String,
    }
    let form = |e: serde_json::Error| Refused::Form { what: "the statement", why: e.to_string() };
    let Kind { statement, predicate } = serde_json::from_slice(payload).map_err(form)?;
    let pairs =
        [("the statement's type", statement, STATEMENT_TYPE), ("the predicate's type", predicate, PREDICATE_TYPE)];
    match pairs.into_iter().find(|(_, seen, known)| seen != known) {
        Some((what, seen, known)) => Err(Refused::Kind { what, seen, known: known.into() }),
        None => Ok(()),
    }
}

/// What the evidence is of: each object and program that it digests.
fn subjects(evidence: &Evidence) -> Vec<Subject> {
    let sha256 = |name: String, digest: &Digest| {
        let digest = BTreeMap::from([("sha256".to_owned(), digest.clone())]);
        Subject { name, digest }
    };
    let files = evidence.files.iter().map(|file| ("file", file));
    let programs = evidence.programs.iter().map(|file| ("program", file));
    let digested = files
        .chain(programs)
        .filter_map(|(kind, file)| Some(sha256(format!("{kind}:{}", file.name), file.digest.taken()?)));
    let policy = evidence.policy.taken().and_then(|policy| policy.loaded.taken());
    let policy = policy.map(|digest| sha256("policy".into(), digest));
    let own = canonical::bytes("the evidence", evidence).map(|bytes| Digest::of(&bytes));
    let own = own.ok().map(|digest| sha256(format!("sandbox:{}", evidence.sandbox), &digest));
    own.into_iter().chain(digested).chain(policy).collect()
}
