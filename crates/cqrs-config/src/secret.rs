//! [`Secret`], and the reading of texts that no error may show, for the settings of all clients.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

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
    // Not `deserialize_string`: then `serde_json` shows a number before the visitor is asked.
    from.deserialize_any(AnyText)
}

/// The type of the value, such as `a number`, if [`secret_text`] found no text.
pub fn not_text(text: &str) -> Option<&str> {
    text.strip_prefix(MARK)
}

/// A text that [`not_text`] recognizes; `what` names the type.
pub fn marked_as_not_text(what: &str) -> String {
    format!("{MARK}{what}")
}

struct AnyText;

/// Methods of a visitor that mark a value of another type.
macro_rules! marks {
    ($($visit:ident($($value:ty)?) = $what:literal,)+) => {
        $(fn $visit<E>(self $(, _: $value)?) -> Result<String, E> {
            Ok(marked_as_not_text($what))
        })+
    };
}

impl<'de> Visitor<'de> for AnyText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E>(self, text: String) -> Result<String, E> {
        Ok(text)
    }

    marks! {
        visit_bool(bool) = "true or false",
        visit_i64(i64) = "a number",
        visit_i128(i128) = "a number",
        visit_u64(u64) = "a number",
        visit_u128(u128) = "a number",
        visit_f64(f64) = "a number",
        visit_bytes(&[u8]) = "bytes",
        visit_unit() = "nothing",
        visit_none() = "nothing",
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        secret_text(from)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        secret_text(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<String, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(marked_as_not_text("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(marked_as_not_text("a table, or a date"))
    }
}
