//! Ed25519 keys (RFC 8032) in the forms that everybody reads: SPKI and PKCS #8 PEM as in RFC 8410.
//!
//! Verification is ring's: a signature whose S is not below the group's order, or whose R has another encoding, is refused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, Refused};

/// What stands before the 32 bytes of a public key, and of a private one (RFC 8410, sections 4 and 7).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const PUBLIC: &str = "PUBLIC KEY";
const PRIVATE: &str = "PRIVATE KEY";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads the one spelling of a public key's PEM; white space at its end is let pass.
    pub fn from_pem(text: &str) -> Result<PublicKey, Refused> {
        let form = |why: &str| Refused::Form { what: "the public key", why: why.into() };
        let der = unpem(PUBLIC, text).ok_or_else(|| form("no PEM of a public key"))?;
        let raw = der.strip_prefix(&SPKI[..]).and_then(|raw| raw.try_into().ok());
        raw.map(PublicKey).ok_or_else(|| form("no Ed25519 key"))
    }

    pub fn to_pem(self) -> String {
        pem(PUBLIC, &self.der())
    }

    /// Its name: SHA-256 of the DER form, as `openssl pkey -pubin -outform DER | sha256sum` prints.
    pub fn id(self) -> Digest {
        Digest::of(&self.der())
    }

    pub fn verify(self, bytes: &[u8], signature: &[u8]) -> Result<(), Refused> {
        let refused = |_| Refused::Signature(self.id());
        UnparsedPublicKey::new(&ED25519, self.0).verify(bytes, signature).map_err(refused)
    }

    fn der(self) -> Vec<u8> {
        [&SPKI[..], &self.0].concat()
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_pem())
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PublicKey::from_pem(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The host's key.
pub struct KeyPair(Ed25519KeyPair);

impl KeyPair {
    /// From 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Result<KeyPair, Refused> {
        let form = |e: ring::error::KeyRejected| Refused::Form { what: "the private key", why: e.to_string() };
        Ed25519KeyPair::from_seed_unchecked(seed).map(KeyPair).map_err(form)
    }

    pub fn from_pem(text: &str) -> Result<KeyPair, Refused> {
        let form = |why: &str| Refused::Form { what: "the private key", why: why.into() };
        let der = unpem(PRIVATE, text).ok_or_else(|| form("no PEM of a private key"))?;
        let seed = der.strip_prefix(&PKCS8[..]).and_then(|raw| raw.try_into().ok());
        KeyPair::from_seed(seed.ok_or_else(|| form("no Ed25519 key"))?)
    }

    /// PKCS #8 PEM of a key that is made of this seed.
    pub fn pem(seed: &[u8; 32]) -> String {
        pem(PRIVATE, &[&PKCS8[..], seed].concat())
    }

    pub fn public(&self) -> PublicKey {
        let mut raw = [0; 32];
        raw.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(raw)
    }

    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(bytes).as_ref().to_vec()
    }
}

/// Both keys' base64 fits one line of 64.
fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn unpem(label: &str, text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end();
    let inner = text.strip_prefix(&format!("-----BEGIN {label}-----\n"))?;
    let inner = inner.strip_suffix(&format!("\n-----END {label}-----"))?;
    STANDARD.decode(inner).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_form() {
        let pair = KeyPair::from_pem(&KeyPair::pem(&[7; 32])).unwrap();
        let public = PublicKey::from_pem(&pair.public().to_pem()).unwrap();
        assert_eq!(public, pair.public());
        public.verify(b"x", &pair.sign(b"x")).unwrap();
        assert!(public.verify(b"y", &pair.sign(b"x")).is_err());
        assert_ne!(public.id(), KeyPair::from_seed(&[8; 32]).unwrap().public().id());
    }

    /// RFC 8032, section 7.1, test 2; and RFC 8410, section 10.1 and 10.3 for the PEM forms.
    #[test]
    fn the_published_vectors_hold() {
        let raw = |hex: &str| -> Vec<u8> {
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
        };
        let seed = raw("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let pair = KeyPair::from_seed(&seed.try_into().unwrap()).unwrap();
        let signature = raw(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        assert_eq!(pair.sign(&[0x72]), signature);
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        assert_eq!(KeyPair::from_pem(private).unwrap().public().to_pem(), pem);
    }

    #[test]
    fn a_malleable_signature_is_refused() {
        let pair = KeyPair::from_seed(&[7; 32]).unwrap();
        let mut signature = pair.sign(b"x");
        // S + L verifies where S is not checked.
        let order: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut carry = 0u16;
        for (byte, add) in signature[32..].iter_mut().zip(order) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = carry as u8;
            carry >>= 8;
        }
        assert!(pair.public().verify(b"x", &signature).is_err());
        for length in [0, 63, 65] {
            assert!(pair.public().verify(b"x", &vec![0; length]).is_err());
        }
    }

    #[test]
    fn other_keys_are_refused() {
        for bad in [
            "",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(PublicKey::from_pem(bad).is_err(), "{bad}");
        }
    }
}
