//! Values that may be secrets, out of a specification.

use std::collections::BTreeMap;

use casemate_evidence::Digest;
use casemate_evidence::digest::hex;
use casemate_evidence::parts::{HIDDEN, SpecText};
use serde_json::Value;

use crate::evidence_args::Redact;

/// The specification for a bundle. Its environment's values are hidden unless they are to be shown.
pub fn spec(bytes: &str, how: Redact, salt: [u8; 16]) -> Result<SpecText, String> {
    let salt = hex(&salt);
    let digest = |bytes: &str| (how != Redact::Hide).then(|| Digest::salted(&salt, bytes.as_bytes()));
    let whole = SpecText {
        text: bytes.into(),
        bytes: bytes.len(),
        digest: digest(bytes),
        hidden: BTreeMap::new(),
        salt: (how != Redact::Hide).then(|| salt.clone()),
    };
    if how == Redact::Show {
        return Ok(whole);
    }
    let mut value: Value = serde_json::from_str(bytes).map_err(|e| format!("the specification is no JSON: {e}"))?;
    let mut hidden = BTreeMap::new();
    for (name, value) in value.get_mut("env").and_then(Value::as_object_mut).into_iter().flatten() {
        let Value::String(secret) = value else { return Err(format!("the variable {name} has no text")) };
        hidden.insert(name.clone(), digest(secret));
        *value = HIDDEN.into();
    }
    let text = if hidden.is_empty() { bytes.into() } else { value.to_string() };
    Ok(SpecText { text, hidden, ..whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{"version":1,"name":"a","env":{"TOKEN":"hunter2","EMPTY":""},"command":["x"]}"#;

    #[test]
    fn no_value_is_told_unless_it_is_to_be() {
        for how in [Redact::Digest, Redact::Hide] {
            let told = serde_json::to_string(&spec(SPEC, how, [7; 16]).unwrap()).unwrap();
            assert!(!told.contains("hunter2") && told.contains("TOKEN") && told.contains(HIDDEN), "{told}");
        }
        assert_eq!(spec(SPEC, Redact::Show, [7; 16]).unwrap().text, SPEC);
        let hide = spec(SPEC, Redact::Hide, [7; 16]).unwrap();
        assert_eq!((hide.digest, hide.salt, hide.hidden["TOKEN"].clone()), (None, None, None));
    }

    #[test]
    fn who_knows_a_value_can_confirm_it() {
        let told = spec(SPEC, Redact::Digest, [7; 16]).unwrap();
        let salt = told.salt.unwrap();
        assert_eq!(told.hidden["TOKEN"], Some(Digest::salted(&salt, b"hunter2")));
        assert_eq!(told.digest, Some(Digest::salted(&salt, SPEC.as_bytes())));
        let other = spec(SPEC, Redact::Digest, [8; 16]).unwrap();
        assert_ne!(other.hidden["TOKEN"], told.hidden["TOKEN"], "the salt counts");
    }

    #[test]
    fn without_an_environment_the_bytes_stay() {
        let plain = r#"{ "version": 1, "bare": true }"#;
        assert_eq!(spec(plain, Redact::Digest, [7; 16]).unwrap().text, plain);
    }
}
