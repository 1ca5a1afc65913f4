//! The DSSE envelope (https://github.com/secure-systems-lab/dsse, protocol and envelope v1): payload, its type, one
//! signature over both.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::{Digest, KeyPair, MAX_BUNDLE, PublicKey, Refused, Statement, canonical};

pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// base64 of the statement.
    pub payload: String,
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// One.
    pub signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// [`PublicKey::id`].
    pub keyid: String,
    /// base64 of the 64 bytes.
    pub sig: String,
}

/// What is signed: type and payload with their lengths, so that neither can be read as a part of the other.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// An envelope that is in its one spelling and whose signature is that of the key it names.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub statement: Statement,
    /// SHA-256 of the payload: what the chain's record holds.
    pub payload: Digest,
    pub signer: PublicKey,
}

impl Envelope {
    /// Signs a statement, whose seal names this key.
    pub fn seal(statement: &Statement, key: &KeyPair) -> Result<(Envelope, Digest), Refused> {
        let payload = canonical::bytes("the statement", statement)?;
        let sig = STANDARD.encode(key.sign(&pae(PAYLOAD_TYPE, &payload)));
        let signatures = vec![Signature { keyid: key.public().id().to_string(), sig }];
        let envelope = Envelope { payload: STANDARD.encode(&payload), payload_type: PAYLOAD_TYPE.into(), signatures };
        Ok((envelope, Digest::of(&payload)))
    }

    /// The bundle's file: one line.
    pub fn to_file(&self) -> Result<Vec<u8>, Refused> {
        let mut bytes = canonical::bytes("the bundle", self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl Bundle {
    /// Opens a bundle's file. With a key, only that key's signature counts; without one, the embedded key's, by which a bundle
    /// says no more than that it is whole.
    pub fn open(file: &[u8], key: Option<PublicKey>) -> Result<Bundle, Refused> {
        if file.len() > MAX_BUNDLE {
            return Err(Refused::Size { what: "the bundle", most: MAX_BUNDLE });
        }
        let line = file.strip_suffix(b"\n").ok_or(Refused::Spelling("the bundle"))?;
        let envelope: Envelope = canonical::parse("the bundle", line)?;
        if envelope.payload_type != PAYLOAD_TYPE {
            let (seen, known) = (envelope.payload_type, PAYLOAD_TYPE.into());
            return Err(Refused::Kind { what: "the payload type", seen, known });
        }
        let [signature] = &envelope.signatures[..] else {
            let why = format!("{} signatures, where one stands", envelope.signatures.len());
            return Err(Refused::Form { what: "the bundle", why });
        };
        let payload = decode("the payload", &envelope.payload)?;
        let statement = Statement::parse(&payload)?;
        let signer = statement.predicate.seal.signer;
        let seen = signer.id();
        if let Some(wanted) = key.map(PublicKey::id).filter(|wanted| *wanted != seen) {
            return Err(Refused::Key { seen, wanted });
        }
        if signature.keyid != seen.as_str() {
            return Err(Refused::Form { what: "the key id", why: format!("it is not {seen}, the signer's") });
        }
        signer.verify(&pae(PAYLOAD_TYPE, &payload), &decode("the signature", &signature.sig)?)?;
        Ok(Bundle { statement, payload: Digest::of(&payload), signer })
    }
}

/// Strict: padding where it belongs, no bits left over.
fn decode(what: &'static str, text: &str) -> Result<Vec<u8>, Refused> {
    STANDARD.decode(text).map_err(|e| Refused::Form { what, why: e.to_string() })
}
