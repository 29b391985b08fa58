//! The JSON Schema of the format.

use super::Results;

/// The JSON Schema (2020-12) of a results file, made from the types and their comments.
#[must_use]
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Results);
    schema.insert("title".to_owned(), "Results of the vswitch laboratory".into());
    schema.to_value()
}
