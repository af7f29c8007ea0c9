//! [`Secret`], and the reading of texts that no error may show, for the settings of all clients.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

/// A password, key or token. Shown as `***`; never serialized.
///
/// In a file it must be a text. Anything else, such as a number without quotes, is an error when the
/// client is made, not one of the file's format, which would show the line.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        secret_text(from).map(Self)
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Begins the text that replaces a value of another type. No password, key or address holds a NUL.
const MARK: &str = "\0not a text: ";

/// Reads a text that no error may show, for `#[serde(deserialize_with)]`.
///
/// The errors of a format show the value: `toml` prints the whole line. So a value of another type, such
/// as a password of digits without quotes, is no error here. It becomes a text that [`not_text`]
/// recognizes, and the client refuses it when it is made.
///
/// # Errors
/// Those of the format itself, such as a text that never ends.
pub fn secret_text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    // Not `deserialize_string`: then `serde_json` shows a number in its error.
    Ok(match AnyValue::deserialize(from)? {
        AnyValue::Text(text) => text,
        AnyValue::Bool(_) => marked_as_not_text("true or false"),
        AnyValue::Number(_) => marked_as_not_text("a number"),
        AnyValue::List(_) => marked_as_not_text("a list"),
        AnyValue::Other(_) => marked_as_not_text("a table, a date or nothing"),
    })
}

#[derive(Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only the type of another value counts")]
enum AnyValue {
    Text(String),
    Bool(bool),
    Number(f64),
    List(Vec<IgnoredAny>),
    Other(IgnoredAny),
}

/// The type of the value, such as `a number`, if [`secret_text`] found no text.
pub fn not_text(text: &str) -> Option<&str> {
    text.strip_prefix(MARK)
}

/// A text that [`not_text`] recognizes; `what` names the type.
pub fn marked_as_not_text(what: &str) -> String {
    format!("{MARK}{what}")
}
