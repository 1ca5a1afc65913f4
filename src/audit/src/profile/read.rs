//! Reading a table whose every key must be known.

use toml::{Table, Value};

use super::Problem;

/// `, did you mean X?` for the nearest of what is known.
pub(crate) fn like(word: &str, known: &[&str]) -> String {
    let scored = known.iter().map(|have| (strsim::normalized_damerau_levenshtein(word, have), *have));
    match scored.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((score, nearest)) if score > 0.4 => format!("; did you mean {nearest}?"),
        _ => String::new(),
    }
}

pub(crate) fn at(place: &str, key: &str) -> String {
    if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") }
}

/// `Err` for the first key that is not known.
pub(crate) fn keys(table: &Table, place: &str, known: &[&str]) -> Result<(), Problem> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(Problem::new(at(place, key), format!("there is no such key here{}", like(key, known)))),
        None => Ok(()),
    }
}

pub(crate) fn string<'a>(table: &'a Table, place: &str, key: &str) -> Result<Option<&'a str>, Problem> {
    let value = table.get(key);
    value.map(|v| v.as_str().ok_or_else(|| Problem::new(at(place, key), "this must be a string"))).transpose()
}

/// A string that must be there and say something.
pub(crate) fn needed<'a>(table: &'a Table, place: &str, key: &str) -> Result<&'a str, Problem> {
    let text = string(table, place, key)?.map(str::trim).filter(|text| !text.is_empty());
    text.ok_or_else(|| Problem::new(at(place, key), "this is needed"))
}

pub(crate) fn table<'a>(all: &'a Table, place: &str, key: &str) -> Result<Option<&'a Table>, Problem> {
    let value = all.get(key);
    value.map(|v| v.as_table().ok_or_else(|| Problem::new(at(place, key), "this must be a table"))).transpose()
}

/// `[[place.key]]`, each with its place.
pub(crate) fn tables<'a>(all: &'a Table, place: &str, key: &str) -> Result<Vec<(String, &'a Table)>, Problem> {
    let Some(value) = all.get(key) else { return Ok(Vec::new()) };
    let wrong = || Problem::new(at(place, key), format!("this must be a list of tables: [[{}]]", at(place, key)));
    let list = value.as_array().ok_or_else(wrong)?;
    let named = list.iter().enumerate().map(|(n, v)| Some((format!("{}[{n}]", at(place, key)), v.as_table()?)));
    named.collect::<Option<Vec<_>>>().ok_or_else(wrong)
}

/// One string, or a list of them; empty if the key is absent.
pub(crate) fn words(all: &Table, place: &str, key: &str) -> Result<Vec<String>, Problem> {
    let wrong = || Problem::new(at(place, key), "this must be a string or a list of strings");
    match all.get(key) {
        None => Ok(Vec::new()),
        Some(Value::String(word)) => Ok(vec![word.clone()]),
        Some(Value::Array(list)) => {
            let words = list.iter().map(|value| value.as_str().map(str::to_owned));
            let words = words.collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
            if words.is_empty() { Err(Problem::new(at(place, key), "this list is empty")) } else { Ok(words) }
        }
        Some(_) => Err(wrong()),
    }
}

pub(crate) fn number(all: &Table, place: &str, key: &str) -> Result<Option<u64>, Problem> {
    let wrong = || Problem::new(at(place, key), "this must be a number, 0 or more");
    all.get(key).map(|v| v.as_integer().and_then(|n| u64::try_from(n).ok()).ok_or_else(wrong)).transpose()
}
