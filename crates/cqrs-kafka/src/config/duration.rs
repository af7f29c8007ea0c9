//! Durations in config files and environment variables: `250` (milliseconds), `5ms`, `30s`, `2m`.

use std::fmt;
use std::time::Duration;

use serde::Deserializer;
use serde::de::{Error, Visitor};

use crate::KafkaError;

pub(super) fn parse(text: &str) -> Result<Duration, KafkaError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: Option<u64> = digits.trim_end().parse().ok();
    let milliseconds = match &text[digits.len()..] {
        "" | "ms" => number,
        "s" => number.and_then(|number| number.checked_mul(1_000)),
        "m" => number.and_then(|number| number.checked_mul(60_000)),
        _ => None,
    };
    milliseconds.map(Duration::from_millis).ok_or_else(|| {
        KafkaError::config(format!("{text:?} is no duration such as 250, 5ms, 30s or 2m"))
    })
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    struct Text;

    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("milliseconds, or a duration such as \"5ms\", \"30s\" or \"2m\"")
        }

        fn visit_u64<E: Error>(self, milliseconds: u64) -> Result<Duration, E> {
            Ok(Duration::from_millis(milliseconds))
        }

        fn visit_i64<E: Error>(self, milliseconds: i64) -> Result<Duration, E> {
            u64::try_from(milliseconds).map(Duration::from_millis).map_err(E::custom)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).map_err(E::custom)
        }
    }

    from.deserialize_any(Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_usual_forms() {
        for (text, milliseconds) in [("250", 250), ("5ms", 5), ("30s", 30_000), ("2 m", 120_000)] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for bad in ["", "s", "5h", "-1", "1.5s", "99999999999999999999", "5\u{e9}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
