//! Reads an event from JSON in exactly the form in which this framework and python-cqrs write it; used by the JSON
//! deserializer before the general parser.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Deserializer;
use uuid::Uuid;

use crate::event::{Notification, NotificationEvent, Timestamp};

/// The event, if `text` has the fields of [`NotificationEvent`] in their order, without white space between them, and
/// no escapes outside of the payload. `None` for every other text: the general parser reads it, or says what is wrong
/// with it.
///
/// The frame around the payload is compared and cut, which takes a third of the instructions of parsing it.
pub(super) fn read<P: Notification + DeserializeOwned>(text: &str) -> Option<NotificationEvent<P>> {
    if !const { is_plain(P::NAME) } {
        return None;
    }
    let from_payload = text.strip_prefix(r#"{"payload":"#).filter(|rest| rest.starts_with('{'))?;
    let mut values = Deserializer::from_str(from_payload).into_iter::<P>();
    let payload = values.next()?.ok()?;
    let rest = from_payload.get(values.byte_offset()..)?;
    let (event_id, rest) = rest.strip_prefix(r#","event_id":""#)?.split_at_checked(UUID_LENGTH)?;
    let event_id = Uuid::try_parse(event_id).ok()?;
    let rest = rest.strip_prefix(r#"","event_timestamp":""#)?;
    let ends_at = |length: &usize| rest.as_bytes().get(*length) == Some(&b'"');
    let (timestamp, rest) = rest.split_at_checked(TIMESTAMP_LENGTHS.into_iter().find(ends_at)?)?;
    // Its parser takes any byte here, also one that ends the string. Elsewhere it takes digits and signs.
    if timestamp.as_bytes().get(DATE_LENGTH) != Some(&b'T') {
        return None;
    }
    let event_timestamp: Timestamp = timestamp.parse().ok()?;
    let rest = rest.strip_prefix(r#"","event_name":""#)?.strip_prefix(P::NAME)?;
    let topic = rest.strip_prefix(r#"","topic":""#)?.strip_suffix(r#""}"#)?;
    if !is_plain(topic) {
        return None;
    }
    let own = P::topic();
    let topic = if own == topic { own } else { Cow::Owned(topic.to_owned()) };
    Some(NotificationEvent::from_parts(payload, event_id, event_timestamp, P::NAME, topic))
}

/// `true` if the text stands in JSON as it is.
const fn is_plain(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let [byte, behind @ ..] = rest {
        if matches!(byte, 0..b' ' | b'"' | b'\\') {
            return false;
        }
        rest = behind;
    }
    true
}

/// The length of a hyphenated UUID.
const UUID_LENGTH: usize = 36;
const DATE_LENGTH: usize = "2024-01-02".len();
/// The lengths of a timestamp: with and without a fraction, in UTC and, as python-cqrs writes it, without an offset. The
/// shortest one comes first: with it, a quote of what follows stands at the end of the longest one.
const TIMESTAMP_LENGTHS: [usize; 4] = [19, 32, 25, 26];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, cqrs_macros::Notification)]
    #[cqrs(crate = "crate", topic = "user_events")]
    struct UserCreated {
        user_id: String,
        tags: Vec<Option<f64>>,
    }

    /// An event at a time of 2024-01-02.
    fn text(time: &str) -> String {
        format!(
            r#"{{"payload":{{"user_id":"1","tags":[]}},"event_id":"3fa85f64-5717-4562-b3fc-2c963f66afa6","event_timestamp":"2024-01-02{time}","event_name":"UserCreated","topic":"user_events"}}"#
        )
    }

    fn event() -> impl Strategy<Value = NotificationEvent<UserCreated>> {
        let tags = proptest::collection::vec(proptest::option::of(-1e9..1e9), 0..3);
        let topic = prop_oneof![Just("user_events".to_owned()), ".{0,6}"];
        let name = prop_oneof![4 => Just("UserCreated".to_owned()), 1 => ".{0,12}"];
        let frame = (any::<u128>(), any::<i64>(), name, topic);
        (".{0,6}", tags, frame).prop_map(|(user_id, tags, (id, micros, name, topic))| {
            let payload = UserCreated { user_id, tags };
            let timestamp = Timestamp::from_unix_micros(micros);
            NotificationEvent::from_parts(payload, Uuid::from_u128(id), timestamp, name, topic)
        })
    }

    #[test]
    fn own_form_is_read_without_the_general_parser() {
        let payload = UserCreated { user_id: "\"Zoë\n".to_owned(), tags: vec![None, Some(0.5)] };
        for topic in ["user_events", "other"] {
            let event = NotificationEvent::new(payload.clone()).with_topic(topic);
            assert_eq!(read(&serde_json::to_string(&event).unwrap()), Some(event));
        }
        for end in [".678901+00:00", "+00:00", ".678901", ""] {
            assert!(read::<UserCreated>(&text(&format!("T03:04:05{end}"))).is_some(), "{end}");
        }
    }

    /// A timestamp may have any byte between its date and its time, a string of JSON may not.
    #[test]
    fn what_is_no_json_is_not_read() {
        for separator in ["\"", "\\", "\u{1}"] {
            let text = text(&format!("{separator}03:04:05.678901+00:00"));
            assert!(serde_json::from_str::<NotificationEvent<UserCreated>>(&text).is_err());
            assert_eq!(read::<UserCreated>(&text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn general_parser_reads_the_same(
            event in event(),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), "[\"\\\\{}:,a0 é\u{1}]?"), 0..3),
        ) {
            let mut text = serde_json::to_string(&event).unwrap();
            for (at, with) in edits {
                let (at, old) = text.char_indices().nth(at.index(text.chars().count())).unwrap();
                text.replace_range(at..at + old.len_utf8(), &with);
            }
            if let Some(read) = read::<UserCreated>(&text) {
                let parsed = serde_json::from_str::<NotificationEvent<UserCreated>>(&text);
                prop_assert_eq!(parsed.ok(), Some(read), "{}", text);
            }
        }
    }
}
