//! The headers of a message as a JSON object, the form of the `headers` column.

use std::fmt;

use bytes::Bytes;
use cqrs_core::message::{ByteString, Headers};
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The JSON of `headers`, in their order; `None` if there are none. A value that is no text becomes
/// `{"hex": "00ff"}`.
pub(crate) fn to_json(headers: &Headers) -> Option<String> {
    if headers.is_empty() {
        return None;
    }
    // Writing texts to a string cannot fail.
    serde_json::to_string(&AsJson(headers)).ok()
}

/// The headers of such JSON.
pub(crate) fn from_json(json: &str) -> Result<Headers, serde_json::Error> {
    serde_json::from_str::<FromJson>(json).map(|FromJson(headers)| headers)
}

struct AsJson<'h>(&'h Headers);

impl Serialize for AsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0.iter() {
            map.serialize_entry(name, value)?;
        }
        for (name, value) in self.0.iter_bytes() {
            let hex = value.iter().map(|byte| format!("{byte:02x}")).collect();
            map.serialize_entry(name, &Binary { hex })?;
        }
        map.end()
    }
}

#[derive(Serialize, Deserialize)]
struct Binary {
    hex: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Binary(Binary),
}

struct FromJson(Headers);

impl<'de> Deserialize<'de> for FromJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = FromJson;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of headers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FromJson, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    let value = match value {
                        Value::Text(text) => Bytes::from(text),
                        Value::Binary(Binary { hex }) => {
                            from_hex(&hex).ok_or_else(|| de::Error::custom("not hex digits"))?
                        }
                    };
                    pairs.push((ByteString::from(name), value));
                }
                Ok(FromJson(Headers::from_pairs(pairs)))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

fn from_hex(hex: &str) -> Option<Bytes> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match pair {
        [high, low] => {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
        }
        _ => None,
    };
    digits.map(byte).collect::<Option<Vec<u8>>>().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_order_text_and_bytes() {
        let mut headers = Headers::new();
        headers.insert("z", "last of the alphabet, \"quoted\", \u{0} and é").unwrap();
        headers.insert("a", "").unwrap();
        headers.insert_bytes("schema", vec![0, 0xff]).unwrap();
        let json = to_json(&headers).unwrap();
        assert_eq!(from_json(&json).unwrap(), headers);
        assert!(json.starts_with("{\"z\":") && json.contains("{\"hex\":\"00ff\"}"), "{json}");
        assert_eq!(to_json(&Headers::new()), None);
    }

    #[test]
    fn broken_json_is_an_error() {
        for bad in ["", "[]", "{\"a\":1}", "{\"a\":{\"hex\":\"0\"}}", "{\"a\":{\"hex\":\"+f\"}}"] {
            assert!(from_json(bad).is_err(), "{bad}");
        }
    }
}
