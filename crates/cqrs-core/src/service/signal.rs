//! The signals that ask a process to end.

/// Resolves when the process is asked to end: SIGTERM or Ctrl-C (on Windows Ctrl-C alone).
///
/// Listening begins when the future is first polled, and the process no longer ends by itself from then
/// on.
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
