//! What a column holds, and how Open vSwitch prints it.

use std::collections::BTreeMap;

use super::words::Data;

/// A single value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Atom {
    /// A string, or a word of an enumeration.
    Text(String),
    /// An integer.
    Number(u64),
    /// A boolean.
    Bool(bool),
}

impl Atom {
    /// As Open vSwitch prints it: what is no plain word is quoted.
    pub fn print(&self, data: Data) -> String {
        match self {
            Atom::Number(number) => number.to_string(),
            Atom::Bool(value) => value.to_string(),
            Atom::Text(text) if data == Data::Bare || (data == Data::Text && is_word(text)) => text.clone(),
            Atom::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
        }
    }
}

fn is_word(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_uuid = text.len() == 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    begins
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        && !["true", "false"].contains(&text)
        && !is_uuid
}

/// What a column holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    /// Exactly one.
    One(Atom),
    /// At most one.
    Maybe(Option<Atom>),
    /// Any number.
    Set(Vec<Atom>),
    /// Values by key.
    Map(BTreeMap<String, Atom>),
}

impl Datum {
    /// A string.
    pub fn text(text: &str) -> Datum {
        Datum::One(Atom::Text(text.to_owned()))
    }

    /// In one of three ways.
    pub fn print(&self, data: Data) -> String {
        let many = |atoms: &[Atom]| -> Vec<String> { atoms.iter().map(|a| a.print(data)).collect() };
        let pairs = |map: &BTreeMap<String, Atom>, between: &str| -> Vec<String> {
            map.iter()
                .map(|(k, v)| format!("{}{between}{}", Atom::Text(k.clone()).print(data), v.print(data)))
                .collect()
        };
        match (self, data) {
            (Datum::One(atom) | Datum::Maybe(Some(atom)), _) => atom.print(data),
            (Datum::Maybe(None), Data::Bare) => String::new(),
            (Datum::Maybe(None), Data::Text) => "[]".to_owned(),
            (Datum::Maybe(None), Data::Json) => "[\"set\",[]]".to_owned(),
            (Datum::Set(atoms), Data::Bare) => many(atoms).join(" "),
            (Datum::Set(atoms), Data::Text) => format!("[{}]", many(atoms).join(", ")),
            (Datum::Set(atoms), Data::Json) if atoms.len() == 1 => atoms[0].print(data),
            (Datum::Set(atoms), Data::Json) => format!("[\"set\",[{}]]", many(atoms).join(",")),
            (Datum::Map(map), Data::Bare) => pairs(map, "=").join(" "),
            (Datum::Map(map), Data::Text) => format!("{{{}}}", pairs(map, "=").join(", ")),
            (Datum::Map(map), Data::Json) => {
                let pairs: Vec<String> = pairs(map, ",").into_iter().map(|pair| format!("[{pair}]")).collect();
                format!("[\"map\",[{}]]", pairs.join(","))
            }
        }
    }
}
