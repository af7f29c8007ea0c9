//! Durations in files and variables: numbers with a unit, for the settings of all clients.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// The smallest timeout of a publish, a connect or a request that a client accepts.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(100);

const NO_UNIT: &str = "a number without a unit is no duration; write \"30s\" or \"250ms\"";
const EXPECTED: &str = "expected a duration such as \"30s\", \"250ms\" or \"1m 30s\"";

/// Reads `30s`, `250ms`, `1m 30s`, `1.5s` and all else that
/// [humantime](https://docs.rs/humantime/latest/humantime/fn.parse_duration.html) reads.
///
/// # Errors
/// When it is none. A number without a unit is an error of its own. The text never shows the value.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    if text.trim().parse::<f64>().is_ok() {
        return Err(NO_UNIT);
    }
    humantime::parse_duration(text).map_err(|_shows_the_value| EXPECTED)
}

/// Reads a duration of a file, for `#[serde(deserialize_with)]`. It is a text, as for [`parse_duration`].
///
/// # Errors
/// When it is none, or a number.
pub fn deserialize_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    match Written::deserialize(from)? {
        Written::Text(text) => parse_duration(&text),
        Written::Number(_) => Err(NO_UNIT),
    }
    .map_err(D::Error::custom)
}

/// Refuses a timeout below a minimum.
///
/// # Errors
/// When it is below; the text names the setting and the minimum.
pub fn check_minimum(setting: &str, value: Duration, minimum: Duration) -> Result<(), String> {
    match value < minimum {
        true => Err(format!("{setting} is {value:?}, which is below the minimum of {minimum:?}")),
        false => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a duration such as \"30s\" or \"250ms\"")]
#[expect(dead_code, reason = "a number is refused unseen")]
enum Written {
    Text(String),
    Number(f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        #[serde(deserialize_with = "deserialize_duration")]
        wait: Duration,
    }

    #[test]
    fn number_with_a_unit_is_read() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("30 s", 30_000),
            (" 30sec ", 30_000),
            ("1.5s", 1_500),
            ("2m", 120_000),
            ("1m 30s", 90_000),
            ("1h", 3_600_000),
        ] {
            let expected = Duration::from_millis(milliseconds);
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
            let file: File = toml::from_str(&format!("wait = '{text}'")).unwrap();
            assert_eq!(file.wait, expected, "{text}");
        }
    }

    #[test]
    fn number_without_a_unit_is_an_error_of_its_own() {
        for text in ["0", "30", " 30 ", "0.5", "-1", "1e3", "99999999999999999999"] {
            assert_eq!(parse_duration(text), Err(NO_UNIT), "{text}");
        }
        for value in ["30", "0", "-1", "0.5", "'30'"] {
            let error = toml::from_str::<File>(&format!("wait = {value}")).unwrap_err();
            assert!(error.message().contains("write \"30s\" or \"250ms\""), "{value}: {error}");
        }
        let json = serde_json::from_str::<File>(r#"{"wait": 30}"#).unwrap_err();
        assert!(json.to_string().contains("without a unit"), "{json}");
    }

    #[test]
    fn text_that_is_no_duration_is_refused_unseen() {
        for text in ["", " ", "s", "ms", "soon", "5x", "-1s", "1,5s", "5\u{e9}", "99999999999999y"]
        {
            assert_eq!(parse_duration(text), Err(EXPECTED), "{text}");
        }
        let list = toml::from_str::<File>("wait = ['30s']").unwrap_err();
        assert!(list.message().contains("expected a duration such as"), "{list}");
    }

    #[test]
    fn short_timeout_is_named_with_the_minimum() {
        let error = check_minimum("publish_timeout", Duration::from_millis(30), MIN_TIMEOUT);
        let text = "publish_timeout is 30ms, which is below the minimum of 100ms";
        assert_eq!(error.unwrap_err(), text);
        assert!(check_minimum("publish_timeout", MIN_TIMEOUT, MIN_TIMEOUT).is_ok());
    }
}
