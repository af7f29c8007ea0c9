//! The history of a dead letter and its headers, written by broker crates and read by operators.

use std::fmt;
use std::str::FromStr;

use crate::event::Timestamp;
use crate::message::Headers;

/// Names of the headers that make a message a dead letter, the same on every broker.
pub const DEAD_LETTER_HEADERS: [&str; 13] = [
    REASON,
    ERROR_TYPE,
    ERROR,
    ATTEMPTS,
    FIRST_FAILURE,
    LAST_FAILURE,
    TOPIC,
    PARTITION,
    OFFSET,
    OMITTED_BYTES,
    KEY_OMITTED,
    QUEUE,
    GROUP,
];

/// The prefix of the headers that keep properties of the original that the dead letter's own frame cannot
/// have (of RabbitMQ: `original-message-id`, `original-expiration`, …).
pub const ORIGINAL_PREFIX: &str = "original-";

const REASON: &str = "cqrs-dead-letter-reason";
const ERROR_TYPE: &str = "cqrs-dead-letter-error-type";
const ERROR: &str = "cqrs-dead-letter-error";
const ATTEMPTS: &str = "cqrs-dead-letter-attempts";
const FIRST_FAILURE: &str = "cqrs-dead-letter-first-failure";
const LAST_FAILURE: &str = "cqrs-dead-letter-last-failure";
const TOPIC: &str = "cqrs-dead-letter-topic";
const PARTITION: &str = "cqrs-dead-letter-partition";
const OFFSET: &str = "cqrs-dead-letter-offset";
const OMITTED_BYTES: &str = "cqrs-dead-letter-omitted-bytes";
const KEY_OMITTED: &str = "cqrs-dead-letter-key-omitted";
const QUEUE: &str = "cqrs-dead-letter-queue";
const GROUP: &str = "cqrs-dead-letter-group";

/// The longest error text in a dead letter, in bytes.
const MAX_ERROR: usize = 1024;

/// The reason of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadLetterReason {
    /// Its bytes cannot be decoded.
    Decode,
    /// The subscription does not know the type of the event.
    UnknownType,
    /// Its handler returned a permanent error.
    Permanent,
    /// Its handler failed on every attempt of the schedule, or its handling ended the process too often.
    Exhausted,
    /// Its handler panicked on the last attempt.
    Panic,
    /// It was too old to be handled.
    Expired,
}

const REASONS: [(DeadLetterReason, &str); 6] = [
    (DeadLetterReason::Decode, "decode"),
    (DeadLetterReason::UnknownType, "unknown-type"),
    (DeadLetterReason::Permanent, "permanent"),
    (DeadLetterReason::Exhausted, "exhausted"),
    (DeadLetterReason::Panic, "panic"),
    (DeadLetterReason::Expired, "expired"),
];

impl DeadLetterReason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        REASONS.iter().find(|(reason, _)| *reason == self).map_or("unknown", |(_, word)| *word)
    }
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The history of a dead letter, beside the message itself.
///
/// On the wire it is in headers ([`DEAD_LETTER_HEADERS`]), the same on every broker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The reason.
    pub reason: DeadLetterReason,
    /// The error's type, as far as it is known.
    pub error_type: String,
    /// The error's text, at most 1 KiB.
    pub error: String,
    /// The number of attempts.
    pub attempts: u32,
    /// The time of the first failure.
    pub first_failure: Timestamp,
    /// The time of the last failure.
    pub last_failure: Timestamp,
    /// The destination it was published to: Kafka's topic, RabbitMQ's routing key.
    pub topic: String,
    /// Kafka's partition.
    pub partition: Option<i32>,
    /// Its offset in the partition or topic.
    pub offset: Option<i64>,
    /// Set if the broker takes no copy of the message: how many bytes of body and headers were left out.
    /// Such a dead letter has the key and these headers only; the original is at
    /// [`topic`](Self::topic), [`partition`](Self::partition) and [`offset`](Self::offset), until retention
    /// removes it.
    pub omitted_bytes: Option<u64>,
    /// Set if the key of the message does not fit into the dead letter's headers and was left out (RabbitMQ).
    pub key_omitted: bool,
    /// RabbitMQ's queue.
    pub queue: Option<String>,
    /// The group that could not handle it.
    pub group: String,
}

/// Headers that are not those of a dead letter.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDeadLetter {
    /// A header that every dead letter has is missing.
    #[error("no header {name:?}: this is no dead letter")]
    Missing {
        /// The header.
        name: &'static str,
    },
    /// A header has a value that cannot be read.
    #[error("header {name:?} is unreadable")]
    Unreadable {
        /// The header.
        name: &'static str,
    },
}

crate::error_debug!(InvalidDeadLetter);

impl DeadLetter {
    /// A dead letter of `topic` and `group`, failed once, now.
    pub fn new(
        reason: DeadLetterReason,
        topic: impl Into<String>,
        group: impl Into<String>,
    ) -> Self {
        let now = Timestamp::now();
        Self {
            reason,
            error_type: String::new(),
            error: String::new(),
            attempts: 0,
            first_failure: now,
            last_failure: now,
            topic: topic.into(),
            partition: None,
            offset: None,
            omitted_bytes: None,
            key_omitted: false,
            queue: None,
            group: group.into(),
        }
    }

    /// Sets the error; its text is cut at 1 KiB, between two characters.
    #[must_use]
    pub fn with_error(mut self, error_type: impl Into<String>, error: impl Into<String>) -> Self {
        self.error_type = error_type.into();
        self.error = error.into();
        self.error.truncate(self.error.floor_char_boundary(MAX_ERROR));
        self
    }

    /// Header names and values.
    pub fn to_headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (REASON, self.reason.to_string()),
            (ERROR_TYPE, self.error_type.clone()),
            (ERROR, self.error.clone()),
            (ATTEMPTS, self.attempts.to_string()),
            (FIRST_FAILURE, self.first_failure.to_string()),
            (LAST_FAILURE, self.last_failure.to_string()),
            (TOPIC, self.topic.clone()),
        ];
        headers.extend(self.partition.map(|partition| (PARTITION, partition.to_string())));
        headers.extend(self.offset.map(|offset| (OFFSET, offset.to_string())));
        headers.extend(self.omitted_bytes.map(|bytes| (OMITTED_BYTES, bytes.to_string())));
        headers.extend(self.key_omitted.then(|| (KEY_OMITTED, true.to_string())));
        headers.extend(self.queue.clone().map(|queue| (QUEUE, queue)));
        headers.push((GROUP, self.group.clone()));
        headers
    }

    /// Reads the headers back.
    ///
    /// # Errors
    /// If a header is missing or unreadable; it is named.
    pub fn from_headers(headers: &Headers) -> Result<Self, InvalidDeadLetter> {
        let text = |name: &'static str| {
            headers.get(name).ok_or(InvalidDeadLetter::Missing { name }).map(str::to_owned)
        };
        let reason = text(REASON)?;
        let reason = REASONS
            .iter()
            .find(|(_, word)| *word == reason)
            .ok_or(InvalidDeadLetter::Unreadable { name: REASON })?
            .0;
        Ok(Self {
            reason,
            error_type: text(ERROR_TYPE)?,
            error: text(ERROR)?,
            attempts: parse(headers, ATTEMPTS)?
                .ok_or(InvalidDeadLetter::Missing { name: ATTEMPTS })?,
            first_failure: parse(headers, FIRST_FAILURE)?
                .ok_or(InvalidDeadLetter::Missing { name: FIRST_FAILURE })?,
            last_failure: parse(headers, LAST_FAILURE)?
                .ok_or(InvalidDeadLetter::Missing { name: LAST_FAILURE })?,
            topic: text(TOPIC)?,
            partition: parse(headers, PARTITION)?,
            offset: parse(headers, OFFSET)?,
            omitted_bytes: parse(headers, OMITTED_BYTES)?,
            key_omitted: parse(headers, KEY_OMITTED)?.unwrap_or(false),
            queue: headers.get(QUEUE).map(str::to_owned),
            group: text(GROUP)?,
        })
    }
}

fn parse<T: FromStr>(
    headers: &Headers,
    name: &'static str,
) -> Result<Option<T>, InvalidDeadLetter> {
    let Some(text) = headers.get(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| InvalidDeadLetter::Unreadable { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        let mut letter = DeadLetter::new(DeadLetterReason::Exhausted, "user_events", "mailer")
            .with_error("MailError", "no such host");
        letter.attempts = 7;
        letter.partition = Some(3);
        letter.offset = Some(42);
        letter.omitted_bytes = Some(2_000_000);
        letter.key_omitted = true;
        letter.first_failure = "2026-01-02T03:04:05Z".parse().unwrap();
        letter
    }

    fn headers(letter: &DeadLetter) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in letter.to_headers() {
            headers.insert(name, value).unwrap();
        }
        headers
    }

    #[test]
    fn dead_letter_headers_round_trip() {
        for (reason, _) in REASONS {
            let letter = DeadLetter { reason, ..letter() };
            assert_eq!(DeadLetter::from_headers(&headers(&letter)), Ok(letter));
        }
        let queued = DeadLetter { queue: Some("q".into()), partition: None, ..letter() };
        assert_eq!(DeadLetter::from_headers(&headers(&queued)), Ok(queued));
    }

    #[test]
    fn all_header_names_are_listed() {
        let letter = DeadLetter { queue: Some("q".into()), ..letter() };
        let names: Vec<_> = letter.to_headers().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, DEAD_LETTER_HEADERS);
    }

    #[test]
    fn missing_or_unreadable_header_is_named() {
        let mut headers = headers(&letter());
        headers.insert(ATTEMPTS, "some").unwrap();
        let unreadable = InvalidDeadLetter::Unreadable { name: ATTEMPTS };
        assert_eq!(DeadLetter::from_headers(&headers), Err(unreadable));
        headers.remove(REASON);
        let missing = InvalidDeadLetter::Missing { name: REASON };
        assert_eq!(DeadLetter::from_headers(&headers), Err(missing));
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let letter = letter().with_error("E", format!("x{}", "ä".repeat(1000)));
        assert_eq!(letter.error.len(), 1023);
        assert!(letter.error.ends_with('ä'));
    }
}
