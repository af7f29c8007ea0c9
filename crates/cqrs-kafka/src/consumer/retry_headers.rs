//! The headers that a retry copy adds. Written by [`settle`](super::settle), read from the [`record`](super::record).

use cqrs_core::consume::RETRY_HEADERS;

/// The time at which the copy in a retry topic is due, in milliseconds since 1970.
pub(super) const DUE: &str = "cqrs-retry-due";
/// The topic of the record that a retry copy was made from.
pub(super) const ORIGINAL_TOPIC: &str = "cqrs-retry-topic";
/// Its partition.
pub(super) const ORIGINAL_PARTITION: &str = "cqrs-retry-partition";
/// Its offset.
pub(super) const ORIGINAL_OFFSET: &str = "cqrs-retry-offset";
/// Its timestamp, in milliseconds since 1970.
pub(super) const ORIGINAL_TIMESTAMP: &str = "cqrs-retry-timestamp";

/// The largest number of headers that a retry copy adds.
pub(super) const MAX_RETRY_HEADERS: usize = RETRY_HEADERS.len() + 5;

/// Returns whether a retry copy adds the header.
pub(super) fn is_retry_header(name: &str) -> bool {
    name.starts_with("cqrs-retry-")
        && (RETRY_HEADERS.contains(&name)
            || [DUE, ORIGINAL_TOPIC, ORIGINAL_PARTITION, ORIGINAL_OFFSET, ORIGINAL_TIMESTAMP]
                .contains(&name))
}
