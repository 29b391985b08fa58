//! Labels: what another program wants to find again at an object. The switch keeps them and never looks at them.

use std::collections::BTreeMap;

use super::{SpecError, wrong};

/// Labels by key. They are in the file, the API and the journal, but not in a SPEC's text, whose commas they may hold.
pub type Labels = BTreeMap<String, String>;

/// Labels of one object.
pub const MAX_LABELS: usize = 64;
const MAX_KEY_BYTES: usize = 128;
/// A label's value: what a network controller hands on in a migration fits in.
const MAX_VALUE_BYTES: usize = 4096;

/// Checks that there are not too many, and none is too long.
pub(super) fn check(object: &str, labels: &Labels) -> Result<(), SpecError> {
    if labels.len() > MAX_LABELS {
        return wrong(format!("{object}: at most {MAX_LABELS} labels"));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() > MAX_KEY_BYTES || key.chars().any(|c| c.is_control() || c == '=') {
            return wrong(format!("{object}: \"{key}\" cannot be a label (1 to {MAX_KEY_BYTES} bytes, no \"=\")"));
        }
        if value.len() > MAX_VALUE_BYTES {
            return wrong(format!("{object}: label {key} is longer than {MAX_VALUE_BYTES} bytes"));
        }
    }
    Ok(())
}
