//! The state of a running relay, for health checks and dashboards.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use uuid::Uuid;

/// The state of the outbox and of a relay, from [`RelayHandle::status`](super::RelayHandle::status); with the feature
/// `postgres` also that of a `PythonRelay`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RelayStatus {
    /// Rows that wait for their publish, of all lanes.
    pub pending: u64,
    /// The age of the oldest of them, by the database's clock.
    pub oldest: Option<Duration>,
    /// Rows of keys that fail now.
    pub parked: u64,
    /// Rows that were refused for good.
    pub dead: u64,
    /// The lanes that this relay owns.
    pub lanes: usize,
    /// Rows that this relay has published and that are not confirmed.
    pub in_flight: usize,
    /// Rows that this relay has published, since its start.
    pub published: u64,
    /// Rows a second that this relay published lately.
    pub rate: f64,
    /// Rows that became visible after later ones. Many of them mean long transactions.
    pub late: u64,
    /// Set while the relay waits for its database.
    pub is_database_away: bool,
    /// Set while the relay waits for its broker.
    pub is_broker_away: bool,
    /// The last error of the database.
    pub last_error: Option<Arc<str>>,
}

/// The result of a [`Relay`](super::Relay).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayReport {
    /// Rows that were confirmed.
    pub published: u64,
    /// Rows that were in flight or not deleted at the end. They are published again by the next relay.
    pub unsettled: usize,
    /// Set if it ended because the broker value was shut down.
    pub is_broker_closed: bool,
}

/// The state of an outbox, from [`Outbox::status`](crate::Outbox::status).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxStatus {
    /// Rows that wait for their publish, of all lanes.
    pub pending: u64,
    /// The age of the oldest of them, by the database's clock.
    pub oldest: Option<Duration>,
    /// Rows of keys that fail now.
    pub parked: u64,
    /// Rows that were refused for good.
    pub dead: u64,
    /// The rows of the history (`RelayBuilder::keep_history` on PostgreSQL), estimated from the database's own counts. `None`
    /// without one.
    pub history: Option<u64>,
    /// The lanes of the outbox.
    pub lanes: u64,
    /// The lanes that have an owner, dead or alive.
    pub owned_lanes: u64,
    /// The known relays.
    pub relays: Vec<RelayInfo>,
}

/// A relay, as the tables have it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayInfo {
    /// Its id, new with each start.
    pub id: Uuid,
    /// The age of its last heartbeat, by the database's clock. Longer than the
    /// [lease](super::RelayBuilder::lease): the relay is dead. A killed relay is known until then, or until
    /// another one takes its lanes.
    pub seen_ago: Duration,
    /// The lanes that it owns.
    pub lanes: u64,
}

/// The counts of the tables.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub(super) pending: i64,
    pub(super) oldest_micros: Option<i64>,
    pub(super) parked: i64,
    pub(super) dead: i64,
    /// An estimate of the rows of the history, if it has partitions.
    pub(super) history: Option<i64>,
}

/// The time of the last measurement, and the rows published until then.
#[derive(Debug, Default)]
pub(super) struct Rate {
    at: Duration,
    published: u64,
}

impl Rate {
    /// The time since the last measurement.
    #[cfg_attr(
        not(feature = "postgres"),
        allow(dead_code, reason = "a relay of python-cqrs's table asks")
    )]
    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.at)
    }

    /// Sets the rate since the last measurement.
    pub(super) fn measure(&mut self, now: Duration, progress: &Progress) {
        let published = progress.published();
        let last = std::mem::replace(self, Self { at: now, published });
        let seconds = last.age(now).as_secs_f64();
        if seconds > 0.0 {
            progress.set_rate((published - last.published) as f64 / seconds);
        }
    }
}

/// What a relay tells about itself.
#[derive(Debug, Default)]
pub(super) struct Progress {
    published: AtomicU64,
    late: AtomicU64,
    lanes: AtomicUsize,
    in_flight: AtomicUsize,
    /// Rows a second, as the bits of an `f64`.
    rate: AtomicU64,
    is_database_away: AtomicBool,
    is_broker_away: AtomicBool,
    last_error: Mutex<Option<Arc<str>>>,
}

impl Progress {
    pub(super) fn count_published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    pub(super) fn count_late(&self, rows: usize) {
        self.late.fetch_add(rows as u64, Ordering::Relaxed);
    }

    fn set_rate(&self, rate: f64) {
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
    }

    pub(super) fn set_lanes(&self, lanes: usize, in_flight: usize) {
        self.lanes.store(lanes, Ordering::Relaxed);
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }

    pub(super) fn set_away(&self, database: bool, broker: bool) {
        self.is_database_away.store(database, Ordering::Relaxed);
        self.is_broker_away.store(broker, Ordering::Relaxed);
    }

    pub(super) fn is_database_away(&self) -> bool {
        self.is_database_away.load(Ordering::Relaxed)
    }

    pub(super) fn failed(&self, error: Arc<str>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn status(&self, counts: Counts) -> RelayStatus {
        RelayStatus {
            pending: number(counts.pending),
            oldest: counts.oldest_micros.map(duration),
            parked: number(counts.parked),
            dead: number(counts.dead),
            lanes: self.lanes.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            published: self.published(),
            rate: f64::from_bits(self.rate.load(Ordering::Relaxed)),
            late: self.late.load(Ordering::Relaxed),
            is_database_away: self.is_database_away(),
            is_broker_away: self.is_broker_away.load(Ordering::Relaxed),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// A count of the database.
pub(super) fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// A duration of the database. A clock that was set back makes it negative.
pub(super) fn duration(micros: i64) -> Duration {
    Duration::from_micros(number(micros))
}
