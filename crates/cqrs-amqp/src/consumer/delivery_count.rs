//! The server's count of a message's returns; part of the consumer, read by the quarantine.

use super::original::Original;
use crate::headers::{ACQUIRED_COUNT, DELIVERY_COUNT, QUARANTINE_CRASHES};

/// Returns after which a message is a candidate for the quarantine. The count proves no crash: prefetching,
/// lost connections and restarts raise it as well.
const CANDIDATE: u32 = 2;

/// Returns of a quarantined message that are not counted as crashes before RabbitMQ 4.3, where a requeue by a
/// consumer counts as well.
const REQUEUES: u32 = 10;

/// The counts of one delivery of a quorum queue.
///
/// `x-delivery-count` is the number of times the message was returned unsettled. Since RabbitMQ 4.3 a nack does
/// not count; such a server also sends `x-acquired-count`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DeliveryCount {
    /// Returns that the server counted.
    pub(super) returned: u32,
    /// Crashes that the message carries from before its move into the quarantine queue.
    carried: u32,
    /// Set if the server counts nothing but crashes and lost connections.
    exact: bool,
}

impl DeliveryCount {
    pub(super) fn of(original: &Original) -> Self {
        let count = |name| original.number(name).and_then(|count| u32::try_from(count).ok());
        Self {
            returned: count(DELIVERY_COUNT).unwrap_or(0),
            carried: count(QUARANTINE_CRASHES).unwrap_or(0),
            exact: count(ACQUIRED_COUNT).is_some(),
        }
    }

    /// True if the message was returned so often that it has to be quarantined. Connections that this source has
    /// `lost` itself are subtracted.
    pub(super) fn is_candidate(self, lost: u32) -> bool {
        self.returned.saturating_sub(lost) >= CANDIDATE
    }

    /// The crashes of a message that was delivered from a quarantine queue. Connections that this source has
    /// `lost` itself while the message ran are subtracted.
    pub(super) fn crashes(self, lost: u32) -> u32 {
        let subtracted = if self.exact { lost } else { lost.saturating_add(REQUEUES) };
        self.carried.saturating_add(self.returned.saturating_sub(subtracted))
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    fn count(counts: &[(&str, i64)]) -> DeliveryCount {
        let mut headers = FieldTable::default();
        for (name, count) in counts {
            headers.insert((*name).into(), AMQPValue::LongLongInt(*count));
        }
        let properties = BasicProperties::default().with_headers(headers);
        DeliveryCount::of(&Original { properties, ..Original::default() })
    }

    const NEW: (&str, i64) = (ACQUIRED_COUNT, 9);

    fn returned(count: i64) -> (&'static str, i64) {
        (DELIVERY_COUNT, count)
    }

    #[test]
    fn two_returns_make_a_suspect() {
        for (returns, candidate) in [(0, false), (1, false), (2, true), (3, true)] {
            assert_eq!(count(&[NEW, returned(returns)]).is_candidate(0), candidate);
            assert_eq!(count(&[returned(returns)]).is_candidate(0), candidate);
        }
        assert!(!count(&[]).is_candidate(0));
    }

    #[test]
    fn own_lost_connections_make_no_suspect() {
        assert!(!count(&[NEW, returned(20)]).is_candidate(20));
        assert!(!count(&[NEW, returned(21)]).is_candidate(20));
        assert!(count(&[NEW, returned(22)]).is_candidate(20));
    }

    #[test]
    fn only_returns_from_quarantine_are_crashes() {
        assert_eq!(count(&[NEW]).crashes(0), 0);
        assert_eq!(count(&[NEW, returned(2)]).crashes(0), 2);
        assert_eq!(count(&[NEW, returned(2)]).crashes(1), 1);
        assert_eq!(count(&[NEW, returned(2), (QUARANTINE_CRASHES, 1)]).crashes(0), 3);
        assert_eq!(count(&[NEW, returned(0), (QUARANTINE_CRASHES, 1)]).crashes(3), 1);
        // An older server counts requeues by a consumer as well.
        assert_eq!(count(&[returned(10)]).crashes(0), 0);
        assert_eq!(count(&[returned(13)]).crashes(0), 3);
        assert_eq!(count(&[returned(13)]).crashes(2), 1);
    }
}
