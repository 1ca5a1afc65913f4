//! The one spelling of a JSON value: no white space, keys in order of their bytes, integers only, strings escaped as
//! serde_json does (what must be, and nothing else). It is what `jq -cS .` prints, and RFC 8785 without its floats.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Refused;

/// A value in its one spelling.
pub fn bytes(what: &'static str, value: &impl Serialize) -> Result<Vec<u8>, Refused> {
    let form = |why: String| Refused::Form { what, why };
    let value = serde_json::to_value(value).map_err(|e| form(e.to_string()))?;
    let sorted = sorted(value).ok_or_else(|| form("it holds a number that is no integer".into()))?;
    serde_json::to_vec(&sorted).map_err(|e| form(e.to_string()))
}

/// Parses, and refuses every other spelling: unknown and repeated fields, white space, another order.
pub fn parse<T: DeserializeOwned + Serialize>(what: &'static str, input: &[u8]) -> Result<T, Refused> {
    let value: T = serde_json::from_slice(input).map_err(|e| Refused::Form { what, why: e.to_string() })?;
    if bytes(what, &value)? == input { Ok(value) } else { Err(Refused::Spelling(what)) }
}

/// Whatever features the JSON library was built with, a map's order is that of its keys. `None`: a float.
fn sorted(value: Value) -> Option<Value> {
    Some(match value {
        Value::Object(map) => {
            let mut entries = Vec::with_capacity(map.len());
            for (key, value) in map {
                entries.push((key, sorted(value)?));
            }
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Map::from_iter(entries))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect::<Option<_>>()?),
        Value::Number(number) if number.is_f64() => return None,
        plain => plain,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn there_is_one_spelling() {
        let one = br#"{"a":[1,{"b":"\n","c":null}],"z":true}"#;
        assert_eq!(bytes("x", &json!({ "z": true, "a": [1, { "c": null, "b": "\n" }] })).unwrap(), one);
        parse::<Value>("x", one).unwrap();
        for other in [
            &br#"{"z":true,"a":1}"#[..],
            br#"{"a":1 }"#,
            br#"{"a":1}
"#,
            br#"{"a":"\u0041"}"#,
            br#"{"a":"\/"}"#,
            br#"{"a":1,"a":1}"#,
            br#"{"a":1.0}"#,
            br#"{"a":1e0}"#,
            br#"{"a":-0}"#,
            b"\xef\xbb\xbf{}",
            b"{}{}",
            b"",
        ] {
            assert!(parse::<Value>("x", other).is_err(), "{}", String::from_utf8_lossy(other));
        }
    }
}
