//! Names of the message headers that the crate and RabbitMQ write; used by the consumer and the frame filter.

use cqrs_core::consume::RETRY_HEADERS;

/// In a copy: the exchange that the message was first published to.
pub(crate) const ORIGINAL_EXCHANGE: &str = "original-exchange";
/// In a copy: the routing key that the message was first published with.
pub(crate) const ORIGINAL_ROUTING_KEY: &str = "original-routing-key";
/// In a copy for a quarantine queue: the crashes counted so far.
pub(crate) const QUARANTINE_CRASHES: &str = "cqrs-quarantine-crashes";

/// In a message that lapin could not read: the reason in words.
pub(crate) const UNREADABLE: &str = "cqrs-unreadable";
/// In such a message: its property flags and list, as a byte array.
pub(crate) const UNREADABLE_PROPERTIES: &str = "cqrs-unreadable-properties";

/// From the server: how often a quorum queue's message was returned unsettled.
pub(crate) const DELIVERY_COUNT: &str = "x-delivery-count";
/// From the server, since RabbitMQ 4.3: how often a quorum queue's message was delivered.
pub(crate) const ACQUIRED_COUNT: &str = "x-acquired-count";
/// From the server: the offset of a message in its stream.
pub(crate) const STREAM_OFFSET: &str = "x-stream-offset";

/// True for the headers that only our retry copies have. Handlers do not see them.
pub(crate) fn is_of_retry(name: &str) -> bool {
    const ADDED: [&str; 7] = [
        QUARANTINE_CRASHES,
        ORIGINAL_EXCHANGE,
        ORIGINAL_ROUTING_KEY,
        "original-user-id",
        "original-expiration",
        "original-cluster-id",
        "original-delivery-mode",
    ];
    RETRY_HEADERS.contains(&name) || ADDED.contains(&name)
}

/// True for the headers that the server writes.
pub(crate) fn is_server_made(name: &str) -> bool {
    matches!(name, "x-death" | DELIVERY_COUNT | ACQUIRED_COUNT | STREAM_OFFSET)
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}
