use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;
use std::time::Duration;

use super::job::Job;
use super::runner::Runner;
use crate::consume::{Source, SourceError};
use crate::dispatch::panic_message;

/// How many deliveries are taken from a source before they are handled.
pub(super) const FETCH: usize = 128;

/// How long deliveries wait for a worker to lead, when all of them are busy for longer than that.
const UNLED: Duration = Duration::from_millis(100);

/// The source in the hands of the one who waits for deliveries. Dropped, it is put back.
pub(super) struct Lead<'r> {
    runner: &'r Runner,
    /// Gone once it was put back.
    source: Option<Box<dyn Source>>,
}

/// What came from a source at once.
pub(super) struct Fetched {
    pub(super) jobs: Vec<Job>,
    pub(super) end: Option<Result<(), SourceError>>,
}

impl<'r> Lead<'r> {
    pub(super) fn new(runner: &'r Runner, source: Box<dyn Source>) -> Self {
        Self { runner, source: Some(source) }
    }

    /// Takes what there is now, at most [`FETCH`]; waits for the first. Cancel safe: a cancelled call has
    /// taken nothing, because it takes only in the poll in which it ends.
    pub(super) async fn fetch(&mut self) -> Fetched {
        let (runner, Some(source)) = (self.runner, &mut self.source) else {
            return std::future::pending().await;
        };
        poll_fn(|cx| {
            let mut jobs = Vec::new();
            let mut end = None;
            while jobs.len() < FETCH && end.is_none() {
                // Sources are code of others. What came before the panic is kept, in order, and nobody
                // polls the source again.
                let polled = catch_unwind(AssertUnwindSafe(|| source.poll_next(cx)));
                let polled = polled.unwrap_or_else(|panic| {
                    let text = format!("its source panicked: {}", panic_message(panic));
                    Poll::Ready(Some(Err(SourceError::new(text))))
                });
                match polled {
                    Poll::Ready(Some(Ok(delivery))) => {
                        jobs.push(Job::new(delivery, &runner.watched));
                    }
                    Poll::Ready(Some(Err(error))) => end = Some(Err(error)),
                    Poll::Ready(None) => end = Some(Ok(())),
                    Poll::Pending => break,
                }
            }
            match jobs.is_empty() && end.is_none() {
                true => Poll::Pending,
                false => Poll::Ready(Fetched { jobs, end }),
            }
        })
        .await
    }

    /// Puts the source back, and `jobs` into the lanes, before anybody else can lead.
    pub(super) fn end(mut self, jobs: impl Iterator<Item = Job>) {
        if let Some(source) = self.source.take() {
            self.runner.put_back(source, jobs);
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            self.runner.put_back(source, std::iter::empty());
        }
    }
}

impl Runner {
    /// Leads while all workers are busy for long: what comes is fetched, up to the subscription's limit,
    /// and an end of the source is noticed.
    pub(super) async fn stand_in(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(UNLED).await;
            if let Some(mut lead) = self.lead() {
                let fetched = lead.fetch().await;
                self.arrived(lead, fetched);
            }
        }
    }
}
