//! [`FailedFilter`]: which dead or parked rows an operation is about.

use std::time::Duration;

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

    /// The age in microseconds, bounded by what a database can subtract from its time.
    pub(super) fn age_micros(&self) -> Option<i64> {
        const THOUSAND_YEARS: Duration = Duration::from_secs(1_000 * 365 * 24 * 60 * 60);
        let micros = self.older_than?.min(THOUSAND_YEARS).as_micros();
        Some(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}
