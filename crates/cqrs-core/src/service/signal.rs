//! The signals that ask a process to end.

/// Resolves on the signals that end a process: SIGTERM or Ctrl-C (on Windows only Ctrl-C).
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

async fn interrupt() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "cannot listen to Ctrl-C");
        std::future::pending::<()>().await;
    }
}
