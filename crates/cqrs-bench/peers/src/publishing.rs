//! Publishing with a window: for frameworks whose publish returns at the confirm.

use std::error::Error;
use std::future::Future;

use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::Answered;
use crate::cpu::Stopwatch;
use crate::meter::per_second;

/// Runs `tasks` tasks, each with its share of the messages, and of the window as publishes that run at once.
pub(crate) async fn publish<S, F, E>(
    messages: usize,
    tasks: usize,
    window: usize,
    send: S,
) -> Answered
where
    S: Fn(usize) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Error + Send + Sync + 'static,
{
    let (each, window) = (messages / tasks, (window / tasks).max(1));
    let start = Stopwatch::start();
    let running: Vec<_> = (0..tasks)
        .map(|task| {
            let sends = futures_util::stream::iter(task * each..(task + 1) * each);
            let sends = sends.map(send.clone()).buffer_unordered(window);
            tokio::spawn(sends.try_for_each(|()| async { Ok(()) }))
        })
        .collect();
    for task in running {
        task.await??;
    }
    Ok(per_second(each * tasks, &start.elapsed()))
}
