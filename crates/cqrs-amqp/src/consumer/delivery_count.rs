//! The server's count of a message's returns, as the quarantine reads it.

use super::incoming::Original;
use crate::headers::{ACQUIRED_COUNT, DELIVERY_COUNT, QUARANTINE_CRASHES};

/// Returns after which a message is a suspect. A count alone condemns no message: prefetching, lost
/// connections and restarts raise it as well.
const SUSPECT: u32 = 2;

/// Before RabbitMQ 4.3 a message that a consumer gives back in good order counts as well. So many returns
/// are forgiven a message that runs alone.
const FORGIVEN: u32 = 10;

/// The counts of one delivery of a quorum queue.
///
/// `x-delivery-count`: how often the message came back unsettled. Since RabbitMQ 4.3 those given back with a
/// nack do not count; such a server also sends `x-acquired-count`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DeliveryCount {
    /// Returns that the server counted.
    pub(super) returned: u32,
    /// Crashes that were counted before the message was put into its quarantine queue.
    noted: u32,
    /// Set if nothing but deaths and lost connections is counted.
    exact: bool,
}

impl DeliveryCount {
    pub(super) fn of(original: &Original) -> Self {
        let count = |name| original.number(name).and_then(|count| u32::try_from(count).ok());
        Self {
            returned: count(DELIVERY_COUNT).unwrap_or(0),
            noted: count(QUARANTINE_CRASHES).unwrap_or(0),
            exact: count(ACQUIRED_COUNT).is_some(),
        }
    }

    /// Whether the message came back so often that it runs alone, not counting the connections that this
    /// source has `lost` itself.
    pub(super) fn is_suspect(self, lost: u32) -> bool {
        self.returned.saturating_sub(lost) >= SUSPECT
    }

    /// For a delivery from a quarantine queue, where every message runs alone: the processes that died of
    /// it, not counting connections that this source has `lost` itself while the message ran.
    pub(super) fn crashes(self, lost: u32) -> u32 {
        let forgiven = if self.exact { lost } else { lost.saturating_add(FORGIVEN) };
        self.noted.saturating_add(self.returned.saturating_sub(forgiven))
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
        for (returns, suspect) in [(0, false), (1, false), (2, true), (3, true)] {
            assert_eq!(count(&[NEW, returned(returns)]).is_suspect(0), suspect);
            assert_eq!(count(&[returned(returns)]).is_suspect(0), suspect);
        }
        assert!(!count(&[]).is_suspect(0));
    }

    #[test]
    fn own_lost_connections_make_no_suspect() {
        assert!(!count(&[NEW, returned(20)]).is_suspect(20));
        assert!(!count(&[NEW, returned(21)]).is_suspect(20));
        assert!(count(&[NEW, returned(22)]).is_suspect(20));
    }

    #[test]
    fn only_returns_from_quarantine_are_crashes() {
        assert_eq!(count(&[NEW]).crashes(0), 0);
        assert_eq!(count(&[NEW, returned(2)]).crashes(0), 2);
        assert_eq!(count(&[NEW, returned(2)]).crashes(1), 1);
        assert_eq!(count(&[NEW, returned(2), (QUARANTINE_CRASHES, 1)]).crashes(0), 3);
        assert_eq!(count(&[NEW, returned(0), (QUARANTINE_CRASHES, 1)]).crashes(3), 1);
        // An older server counts what was given back in good order as well.
        assert_eq!(count(&[returned(10)]).crashes(0), 0);
        assert_eq!(count(&[returned(13)]).crashes(0), 3);
        assert_eq!(count(&[returned(13)]).crashes(2), 1);
    }
}
