//! The signals that ask a process to end.

use std::convert::Infallible;

use super::report::StopHandle;

/// Resolves on the signals that end a process: SIGTERM or Ctrl-C (on Windows only Ctrl-C).
///
/// [`Service::run`](crate::Service::run) and [`App::run`](crate::App::run) await it themselves; it is for
/// programs that run neither.
///
/// Once the future is first polled, these signals no longer end the process by themselves.
pub async fn shutdown_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    () = interrupt() => {}
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot listen to SIGTERM");
                interrupt().await;
            }
        }
    }
    #[cfg(not(unix))]
    interrupt().await;
}

/// Stops gracefully at the first of these signals, and at once at the second.
pub(crate) async fn stop_on_signals(stop: &StopHandle) -> Infallible {
    shutdown_signal().await;
    tracing::info!("stopping: a second signal stops at once");
    stop.stop();
    shutdown_signal().await;
    tracing::warn!("stopping at once");
    stop.stop_now();
    std::future::pending().await
}

async fn interrupt() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "cannot listen to Ctrl-C");
        std::future::pending::<()>().await;
    }
}
