//! The properties and headers of copies (retry, quarantine, dead letter); part of the consumer.

use cqrs_core::consume::{DEAD_LETTER_HEADERS, DeadLetter, RETRY_HEADERS, RetryState};
use cqrs_core::message::header;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::original::Original;
use crate::headers::{ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, QUARANTINE_CRASHES, is_server_made};

/// A retry copy, which waits for the next attempt. Handlers see the same message.
///
/// | of the original | in the copy |
/// |---|---|
/// | body, application headers | the same bytes, the same types |
/// | content type and encoding, message id, timestamp, type, correlation id, reply-to, app id, priority | the same |
/// | exchange, routing key | `original-exchange`, `original-routing-key` |
/// | user id, expiration, cluster id, delivery mode (if not persistent) | `original-…`: the server would refuse the first of another user, and drop the message after the second |
/// | `CC`, `BCC` | `original-cc`, `original-bcc`: the server would route by them again |
/// | what the server wrote (`x-death`, `x-delivery-count`, …) | left out |
pub(super) fn retry(original: &Original, state: &RetryState) -> BasicProperties {
    let mut table = application_headers(original);
    for (name, value) in state.to_headers() {
        set(&mut table, name, value);
    }
    set_origin(&mut table, original);
    let properties = &original.properties;
    for (name, value) in interpreted(properties) {
        set_if_absent(&mut table, name, value);
    }
    properties_of(properties, table)
}

/// A copy for the quarantine queue with the crashes counted so far: a retry copy without a further attempt.
pub(super) fn quarantine(original: &Original, crashes: u32) -> BasicProperties {
    let copy = retry(original, &original.retry());
    let mut table = copy.headers().clone().unwrap_or_default();
    table.insert(QUARANTINE_CRASHES.into(), AMQPValue::LongLongInt(crashes.into()));
    copy.with_headers(table)
}

/// A dead letter: body and application headers unchanged, all properties as `original-…` headers beside those
/// of `letter`, and as properties too unless the server would interpret them.
pub(super) fn dead_letter(original: &Original, letter: &DeadLetter) -> BasicProperties {
    let mut table = application_headers(original);
    set_origin(&mut table, original);
    let properties = &original.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let carried = [
        ("original-content-type", text(properties.content_type())),
        ("original-content-encoding", text(properties.content_encoding())),
        ("original-message-id", text(properties.message_id())),
        ("original-type", text(properties.kind())),
        ("original-correlation-id", text(properties.correlation_id())),
        ("original-reply-to", text(properties.reply_to())),
        ("original-app-id", text(properties.app_id())),
        ("original-timestamp", properties.timestamp().map(|at| at.to_string())),
        ("original-priority", properties.priority().map(|priority| priority.to_string())),
    ];
    let present = carried.into_iter().filter_map(|(name, value)| Some((name, value?)));
    for (name, value) in present.chain(interpreted(properties)) {
        set_if_absent(&mut table, name, value);
    }
    for (name, value) in letter.to_headers() {
        set(&mut table, name, value);
    }
    properties_of(properties, table)
}

/// A dead letter without the sender's headers, if these leave no room for its own. Without `with_key` the key is
/// left out as well, and `key_omitted` is set.
pub(super) fn minimal_dead_letter(
    original: &Original,
    letter: &DeadLetter,
    with_key: bool,
) -> BasicProperties {
    let mut table = FieldTable::default();
    let mut letter = letter.clone();
    if let Some(key) = original.headers().and_then(|headers| headers.inner().get(header::KEY)) {
        letter.key_omitted = !with_key;
        if with_key {
            table.insert(header::KEY.into(), key.clone());
        }
    }
    set_origin(&mut table, original);
    for (name, value) in letter.to_headers() {
        set(&mut table, name, value);
    }
    properties_of(&original.properties, table)
}

fn properties_of(original: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    macro_rules! carry {
        ($($read:ident => $write:ident),*) => {
            $(if let Some(value) = original.$read() {
                properties = properties.$write(value.clone());
            })*
        };
    }
    carry!(
        content_type => with_content_type,
        content_encoding => with_content_encoding,
        message_id => with_message_id,
        timestamp => with_timestamp,
        kind => with_type,
        correlation_id => with_correlation_id,
        reply_to => with_reply_to,
        app_id => with_app_id,
        priority => with_priority
    );
    properties
}

/// The headers of the sender, without those of a copy or of the server.
fn application_headers(original: &Original) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in original.headers().into_iter().flatten() {
        let name = name.as_str();
        let renamed = match name {
            "CC" => "original-cc",
            "BCC" => "original-bcc",
            _ if is_server_made(name) => continue,
            QUARANTINE_CRASHES => continue,
            _ if RETRY_HEADERS.contains(&name) || DEAD_LETTER_HEADERS.contains(&name) => continue,
            _ => name,
        };
        table.insert(ShortString::from(renamed), value.clone());
    }
    table
}

fn set_origin(table: &mut FieldTable, original: &Original) {
    set(table, ORIGINAL_EXCHANGE, original.exchange.as_str());
    set(table, ORIGINAL_ROUTING_KEY, original.routing_key.as_str());
}

/// The properties that the server interprets, as headers.
fn interpreted(properties: &BasicProperties) -> impl Iterator<Item = (&'static str, String)> {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let transient = properties.delivery_mode().filter(|mode| *mode != 2);
    [
        ("original-user-id", text(properties.user_id())),
        ("original-expiration", text(properties.expiration())),
        ("original-cluster-id", text(properties.cluster_id())),
        ("original-delivery-mode", transient.map(|mode| mode.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
}

/// Sets a header unless an earlier copy of the message has it.
fn set_if_absent(table: &mut FieldTable, name: &'static str, value: String) {
    if !table.contains_key(name) {
        set(table, name, value);
    }
}

fn set(table: &mut FieldTable, name: &'static str, value: impl Into<Vec<u8>>) {
    table.insert(name.into(), AMQPValue::LongString(value.into().into()));
}
