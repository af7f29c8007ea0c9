//! [`FailedFilter`]: which dead or parked rows an operation is about.

use std::time::{Duration, SystemTime};

use cqrs_core::event::Timestamp;

/// Which dead or parked rows an operation is about: those that meet all its conditions. The default has none
/// and means all rows.
///
/// ```
/// use cqrs_outbox::FailedFilter;
///
/// let filter = FailedFilter::default().topic("orders").error("too large");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct FailedFilter {
    pub(super) ids: Option<Vec<i64>>,
    pub(super) topic: Option<String>,
    pub(super) name: Option<String>,
    pub(super) error: Option<String>,
    pub(super) up_to: Option<i64>,
    pub(super) older_than: Option<Duration>,
    pub(super) as_of: Option<SystemTime>,
}

impl FailedFilter {
    /// Rows with these ids.
    pub fn ids(mut self, ids: impl IntoIterator<Item = i64>) -> Self {
        self.ids = Some(ids.into_iter().collect());
        self
    }

    /// Rows of this topic.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Rows of the event with this name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Rows whose last error contains this text, in the same case.
    pub fn error(mut self, text: impl Into<String>) -> Self {
        self.error = Some(text.into());
        self
    }

    /// Rows with ids up to this one.
    pub fn up_to(mut self, id: i64) -> Self {
        self.up_to = Some(id);
        self
    }

    /// Rows that died longer ago than this, by the database's clock; parked rows that first failed longer ago.
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Rows that had died at this time, or had first failed if they are parked. The age of
    /// [`older_than`](Self::older_than) is that at this time. Default: the present time of each statement, by the
    /// database's clock.
    ///
    /// With [`FailedCount::at`](crate::FailedCount::at) the batches of a replay or a purge leave alone the rows that
    /// die, or become old enough, after the count.
    pub fn as_of(mut self, time: SystemTime) -> Self {
        self.as_of = Some(time);
        self
    }

    /// The time of [`as_of`](Self::as_of) in microseconds since 1970-01-01 UTC.
    pub(super) fn as_of_micros(&self) -> Option<i64> {
        self.as_of.map(|time| Timestamp::from(time).unix_micros())
    }

    /// The age in microseconds, bounded by what a database can subtract from its time.
    pub(super) fn age_micros(&self) -> Option<i64> {
        const THOUSAND_YEARS: Duration = Duration::from_secs(1_000 * 365 * 24 * 60 * 60);
        let micros = self.older_than?.min(THOUSAND_YEARS).as_micros();
        Some(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}
