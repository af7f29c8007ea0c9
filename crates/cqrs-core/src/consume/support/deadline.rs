//! Deadlines that cannot overflow the clock, for brokers and sources.

use std::time::Duration;

use tokio::time::Instant;

/// The instant `within` from now, at most 30 years ahead: `Duration::MAX` means no deadline.
pub fn far_deadline(within: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    Instant::now() + within.min(FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn longest_duration_is_years_ahead() {
        let year = Duration::from_secs(365 * 24 * 3600);
        assert!(far_deadline(Duration::MAX) > Instant::now() + year);
        assert_eq!(far_deadline(year), Instant::now() + year);
    }
}
