//! The settings of a relay, with their defaults.

use std::time::Duration;

use super::lane::Backoff;

#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Rows in memory.
    pub(super) window: usize,
    /// Bytes of their bodies.
    pub(super) window_bytes: usize,
    pub(super) backoff: Backoff,
    pub(super) poll: Duration,
    pub(super) idle_poll: Duration,
    pub(super) sweep: Duration,
    /// From the insert of a row to its commit.
    pub(super) longest_transaction: Duration,
    pub(super) lease: Duration,
    pub(super) uses_session: bool,
    pub(super) statement_timeout: Duration,
    pub(super) drain: Duration,
    pub(super) dead_letters_unroutable: bool,
    /// PostgreSQL: the time for which published rows are kept.
    pub(super) history: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: 8_192,
            window_bytes: 64 << 20,
            backoff: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(300) },
            poll: Duration::from_millis(250),
            idle_poll: Duration::from_secs(1),
            sweep: Duration::from_secs(30),
            longest_transaction: Duration::from_secs(60),
            lease: Duration::from_secs(30),
            uses_session: true,
            statement_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            dead_letters_unroutable: false,
            history: None,
        }
    }
}
