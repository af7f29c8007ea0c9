//! A [`Message`] as a Kafka record: its checks, timestamp and headers. Used by the producer's handle and client.

use std::time::UNIX_EPOCH;

use cqrs_core::Message;
use cqrs_core::broker::PublishErrorKind as Kind;
use cqrs_core::message::{content_type, header};
use rdkafka::message::{Header, OwnedHeaders};

use crate::config::{IdentityHeaders, RecordHeaders};
use crate::topics;

/// The header in which FastStream has the content type: a Kafka record has no field for it.
const CONTENT_TYPE: &str = "content-type";

/// Refuses a message that the broker would refuse, or that librdkafka would change.
pub(super) fn check(message: &Message, max_bytes: usize) -> Result<(), (Kind, String)> {
    if let Some(fault) = topics::fault(&message.topic) {
        return Err((Kind::Invalid, format!("the topic name {fault}")));
    }
    // librdkafka reads 0 as "now", and brokers refuse negative timestamps.
    if timestamp(message) <= 0 {
        return Err((Kind::Invalid, "its timestamp is not after 1970-01-01T00:00:00Z".into()));
    }
    let size = message.content_size();
    if size > max_bytes {
        let detail = format!("{size} bytes with key and headers, max_message_size is {max_bytes}");
        return Err((Kind::TooLarge, detail));
    }
    Ok(())
}

/// Milliseconds since 1970; 0 for an earlier time.
pub(super) fn timestamp(message: &Message) -> i64 {
    let since = message.timestamp.duration_since(UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(0)
}

/// The record's headers; `None`, without an allocation, when it has none.
pub(super) fn headers(message: &Message, options: RecordHeaders) -> Option<OwnedHeaders> {
    let absent = |name: &str| message.headers.get_bytes(name).is_none();
    let content_type = message.content_type.as_deref();
    let identity = match options.identity {
        IdentityHeaders::Auto => content_type.is_some_and(|name| !content_type::is_json(name)),
        IdentityHeaders::Always => true,
        IdentityHeaders::Never => false,
    };
    let content_type = content_type.filter(|_| options.content_type && absent(CONTENT_TYPE));
    if message.headers.is_empty() && !identity && content_type.is_none() {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.len() + 3);
    for (name, value) in message.headers.iter() {
        headers = add(headers, name, value);
    }
    for (key, value) in message.headers.iter_bytes() {
        headers = headers.insert(Header { key, value: Some(&value[..]) });
    }
    if identity && absent(header::EVENT_NAME) && !message.name.is_empty() {
        headers = add(headers, header::EVENT_NAME, &message.name);
    }
    if identity && absent(header::MESSAGE_ID) {
        let id = message.id.hyphenated();
        headers = add(headers, header::MESSAGE_ID, id.encode_lower(&mut [0; 36]));
    }
    if let Some(content_type) = content_type {
        headers = add(headers, CONTENT_TYPE, content_type);
    }
    Some(headers)
}

fn add(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rdkafka::message::Headers as _;

    use super::*;

    fn names(message: &Message, options: RecordHeaders) -> Vec<(String, String)> {
        let headers = headers(message, options);
        let text = |header: Header<'_, &[u8]>| {
            (header.key.to_owned(), String::from_utf8(header.value.unwrap().to_vec()).unwrap())
        };
        headers.iter().flat_map(|headers| headers.iter().map(text)).collect()
    }

    fn json() -> Message {
        Message::new("t", "{}").with_name("Created").with_content_type(content_type::JSON)
    }

    #[test]
    fn json_record_gets_no_added_header() {
        assert!(headers(&json(), RecordHeaders::default()).is_none());
        assert!(headers(&Message::new("t", "x"), RecordHeaders::default()).is_none());
        let mut traced = json().with_content_type("application/JSON; charset=utf-8");
        traced.headers.set_correlation_id("c-1");
        traced.headers.insert("traceparent", "00-1").unwrap();
        assert_eq!(
            names(&traced, RecordHeaders::default()),
            [("correlation_id".into(), "c-1".into()), ("traceparent".into(), "00-1".into())]
        );
        let event = json().with_content_type("application/cloudevents+json");
        assert!(headers(&event, RecordHeaders::default()).is_none());
    }

    #[test]
    fn protobuf_record_gets_identity_headers() {
        let message = json().with_content_type(content_type::PROTOBUF);
        let id = message.id.to_string();
        assert_eq!(
            names(&message, RecordHeaders::default()),
            [("event_name".into(), "Created".into()), ("message_id".into(), id)]
        );
        let never = RecordHeaders { identity: IdentityHeaders::Never, ..Default::default() };
        assert!(headers(&message, never).is_none());
    }

    #[test]
    fn headers_of_the_message_win_over_added_ones() {
        let all = RecordHeaders { identity: IdentityHeaders::Always, content_type: true };
        let mut message = json();
        message.headers.insert("message_id", "mine").unwrap();
        message.headers.insert("content-type", "text/x").unwrap();
        assert_eq!(
            names(&message, all),
            [
                ("message_id".into(), "mine".into()),
                ("content-type".into(), "text/x".into()),
                ("event_name".into(), "Created".into())
            ]
        );
        let plain = names(&json(), all);
        assert_eq!(plain.last().unwrap(), &("content-type".into(), "application/json".into()));
    }

    #[test]
    fn illegal_topic_name_is_invalid() {
        let long = "t".repeat(250);
        for bad in ["", ".", "..", "a b", "a/b", "\u{e9}", &long] {
            let error = check(&Message::new(bad, ""), 100).unwrap_err();
            assert_eq!(error.0, Kind::Invalid, "{bad}");
        }
        for good in ["a", "...", "A.b_c-9", &long[1..]] {
            assert_eq!(check(&Message::new(good, ""), 100), Ok(()), "{good}");
        }
    }

    #[test]
    fn size_counts_body_key_and_headers() {
        let mut message = Message::new("t", "12345").with_key("key");
        message.headers.insert("h", "v").unwrap();
        assert_eq!(check(&message, 10), Ok(()));
        let (kind, detail) = check(&message, 9).unwrap_err();
        assert_eq!(kind, Kind::TooLarge);
        assert!(detail.contains("10 bytes"), "{detail}");
    }

    #[test]
    fn timestamp_is_in_milliseconds_since_1970() {
        let at = |time| Message::new("t", "").with_timestamp(time);
        let later = at(UNIX_EPOCH + Duration::from_micros(1_500_999));
        assert_eq!(timestamp(&later), 1_500);
        for bad in [UNIX_EPOCH, UNIX_EPOCH - Duration::from_secs(1)] {
            assert_eq!(check(&at(bad), 10).unwrap_err().0, Kind::Invalid);
        }
        assert_eq!(check(&at(SystemTime::now()), 10), Ok(()));
    }
}
