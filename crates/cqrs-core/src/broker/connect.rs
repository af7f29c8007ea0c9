//! The wait for the first connection, the same in every broker's `connect`.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout_at};

use crate::consume::support::far_deadline;

/// The period of the log lines while a server does not answer.
const LOG_PERIOD: Duration = Duration::from_secs(5);

/// Waits until `connected` resolves, for `timeout` at most; for authors of brokers. While it waits, it logs every
/// 5 s, at `info`, that there is no contact with `server` yet, and the `cause`.
///
/// `connected` resolves once the server answers, or with an error that waiting cannot fix: a refused login, an
/// untrusted certificate, another protocol. `None` stands for the timeout.
pub async fn connect_within<T>(
    server: &str,
    timeout: Duration,
    connected: impl Future<Output = T>,
    cause: impl Fn() -> Option<String>,
) -> Option<T> {
    let start = Instant::now();
    let mut log = interval_at(start + LOG_PERIOD, LOG_PERIOD);
    log.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connected = pin!(timeout_at(far_deadline(timeout), connected));
    loop {
        tokio::select! {
            biased;
            ended = &mut connected => return ended.ok(),
            _ = log.tick() => {
                let cause = cause().unwrap_or_else(|| "no answer so far".to_owned());
                let (waited, limit) = (start.elapsed().as_secs(), timeout.as_secs());
                tracing::info!(server, cause, "no contact yet, after {waited} of {limit} s");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn longest_timeout_does_not_panic() {
        let connected = tokio::time::sleep(Duration::from_secs(20));
        let connected = connect_within("a server", Duration::MAX, connected, || None).await;
        assert_eq!(connected, Some(()));
    }
}
