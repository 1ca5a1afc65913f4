//! Bytes to [`SpecFile`]: TOML or JSON, size-capped, with the path of the field in every error.

use crate::error::SpecError;
use crate::wire::SpecFile;

/// The largest specification that is read, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

const REMEDY: &str = "`casemate run --help` and docs/spec.schema.json list the fields";

/// Parses a JSON specification.
pub fn json(bytes: &[u8]) -> Result<SpecFile, SpecError> {
    check_size("JSON", bytes)?;
    let mut input = serde_json::Deserializer::from_slice(bytes);
    let spec = serde_path_to_error::deserialize(&mut input).map_err(|e| syntax("JSON", &e))?;
    input.end().map_err(|e| SpecError::Syntax {
        form: "JSON",
        field: ".".into(),
        problem: e.to_string(),
        remedy: "a file holds one object",
    })?;
    Ok(spec)
}

/// Parses a TOML specification.
pub fn toml(text: &str) -> Result<SpecFile, SpecError> {
    check_size("TOML", text.as_bytes())?;
    let whole = |problem: String| SpecError::Syntax { form: "TOML", field: ".".into(), problem, remedy: REMEDY };
    let input = toml::Deserializer::parse(text).map_err(|e| whole(e.to_string().trim().to_owned()))?;
    serde_path_to_error::deserialize(input).map_err(|e| syntax("TOML", &e))
}

/// The JSON Schema of the wire form, with keys in order whatever features the JSON library was built with.
#[cfg(feature = "schema")]
pub fn json_schema() -> String {
    let schema = sorted(schemars::schema_for!(SpecFile).into());
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

#[cfg(feature = "schema")]
fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            entries.into_iter().collect()
        }
        serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
        plain => plain,
    }
}

fn check_size(form: &'static str, bytes: &[u8]) -> Result<(), SpecError> {
    if bytes.len() <= MAX_BYTES {
        return Ok(());
    }
    let problem = format!("{} bytes are more than {MAX_BYTES}", bytes.len());
    Err(SpecError::Syntax { form, field: ".".into(), problem, remedy: "make it smaller" })
}

fn syntax<E: std::fmt::Display>(form: &'static str, error: &serde_path_to_error::Error<E>) -> SpecError {
    let problem = error.inner().to_string().trim().to_owned();
    SpecError::Syntax { form, field: error.path().to_string(), problem, remedy: REMEDY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_field() {
        let error = json(br#"{"disks":[{"id":"a","path":"/x","format":"qcow9"}]}"#).unwrap_err();
        assert_eq!(error.field_path(), "disks[0].format");
        let error = toml("[limits]\nsnacks = 3\n").unwrap_err();
        assert!(error.to_string().contains("snacks"), "{error}");
    }

    #[test]
    fn repeated_fields_are_refused_in_both_forms() {
        for text in [r#"{"cpus":1,"cpus":2}"#, r#"{"env":{"A":"1","A":"2"}}"#] {
            assert!(json(text.as_bytes()).is_err(), "{text}");
        }
        assert!(toml("cpus = 1\ncpus = 2\n").is_err());
    }

    #[test]
    fn trailing_bytes_and_giants_are_refused() {
        assert!(json(b"{} {}").is_err());
        assert!(json(&vec![b' '; MAX_BYTES + 1]).is_err());
        assert!(json(&b"[".repeat(100_000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = json(&bytes);
            let _ = toml(&String::from_utf8_lossy(&bytes));
        }
    }
}
