//! Reading of texts that no error may show, for the settings of all clients.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Begins what stands for a value that was no text. No password, key or address holds a NUL.
const MARK: &str = "\0not a text: ";

/// Reads a text that no error may show, for `#[serde(deserialize_with)]`.
///
/// The errors of a format show what stands there: `toml` prints the whole line. So a value of another
/// type, such as a password of digits without quotes, is no error here. It becomes a text that
/// [`not_text`] knows, and the client refuses it when it is made.
///
/// # Errors
/// Those of the format itself, such as a text that never ends.
pub fn secret_text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    // Not `deserialize_string`: then `serde_json` shows a number before the visitor is asked.
    from.deserialize_any(AnyText)
}

/// What stood there instead of a text, such as `a number`, if [`secret_text`] found none.
pub fn not_text(text: &str) -> Option<&str> {
    text.strip_prefix(MARK)
}

/// Stands for `what`, which is no text.
pub fn marked_as_not_text(what: &str) -> String {
    format!("{MARK}{what}")
}

struct AnyText;

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

    fn visit_bool<E>(self, _: bool) -> Result<String, E> {
        Ok(marked_as_not_text("true or false"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<String, E> {
        Ok(marked_as_not_text("a number"))
    }

    fn visit_i128<E>(self, _: i128) -> Result<String, E> {
        Ok(marked_as_not_text("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<String, E> {
        Ok(marked_as_not_text("a number"))
    }

    fn visit_u128<E>(self, _: u128) -> Result<String, E> {
        Ok(marked_as_not_text("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<String, E> {
        Ok(marked_as_not_text("a number"))
    }

    fn visit_unit<E>(self) -> Result<String, E> {
        Ok(marked_as_not_text("nothing"))
    }

    fn visit_none<E>(self) -> Result<String, E> {
        Ok(marked_as_not_text("nothing"))
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        secret_text(from)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        secret_text(from)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<String, E> {
        Ok(marked_as_not_text("bytes"))
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
