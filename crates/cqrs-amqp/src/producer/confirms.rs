//! The confirms of one channel, as futures of lapin; part of the producer, polled by the publisher.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use cqrs_core::broker::BoxFuture;
use futures_util::task::AtomicWaker;

/// Futures of a channel's confirms, driven together.
///
/// Unlike `FuturesUnordered`, "pending" means that every future woken before has been polled;
/// [`Unconfirmed`](super::unconfirmed::Unconfirmed) depends on it. lapin resolves confirms one after the
/// other on one thread, and wakes each before it resolves the next; so once no woken future is left,
/// the confirms seen so far have no gap: all that were resolved before one of them were seen too.
pub(crate) struct Confirms<T> {
    futures: HashMap<u64, (BoxFuture<'static, T>, Waker)>,
    woken: Arc<Woken>,
    batch: Vec<u64>,
}

#[derive(Default)]
struct Woken {
    numbers: Mutex<Vec<u64>>,
    owner: AtomicWaker,
}

struct WakeOne {
    number: u64,
    woken: Arc<Woken>,
}

impl<T> Confirms<T> {
    pub(crate) fn new() -> Self {
        Self { futures: HashMap::new(), woken: Arc::default(), batch: Vec::new() }
    }

    /// Adds `future` under a number never used before and polls it once: that hands the message to lapin,
    /// in the order of these calls.
    pub(crate) fn start(
        &mut self,
        number: u64,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let waker = Waker::from(Arc::new(WakeOne { number, woken: Arc::clone(&self.woken) }));
        let mut future: BoxFuture<'static, T> = Box::pin(future);
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => {
                self.futures.insert(number, (future, waker));
                None
            }
        }
    }

    /// Ready when a future completed: moves all completed ones to `done`, without a gap (see the type).
    /// Cancel safe: nothing is moved before it returns.
    pub(crate) fn poll_done(&mut self, cx: &mut Context<'_>, done: &mut Vec<(u64, T)>) -> Poll<()> {
        self.woken.owner.register(cx.waker());
        loop {
            self.woken.take(&mut self.batch);
            if self.batch.is_empty() {
                return match done.is_empty() {
                    true => Poll::Pending,
                    false => Poll::Ready(()),
                };
            }
            for number in self.batch.drain(..) {
                // Woken again after it completed.
                let Some((future, waker)) = self.futures.get_mut(&number) else { continue };
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(waker)) {
                    self.futures.remove(&number);
                    done.push((number, output));
                }
            }
        }
    }

    /// Drops all futures.
    pub(crate) fn clear(&mut self) {
        self.futures.clear();
        self.woken = Arc::default();
    }
}

impl Woken {
    fn take(&self, batch: &mut Vec<u64>) {
        std::mem::swap(&mut *self.numbers.lock().unwrap_or_else(PoisonError::into_inner), batch);
    }
}

impl Wake for WakeOne {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let first = {
            let mut numbers = self.woken.numbers.lock().unwrap_or_else(PoisonError::into_inner);
            numbers.push(self.number);
            numbers.len() == 1
        };
        // The owner polls until the list is empty, so one wake-up is enough.
        if first {
            self.woken.owner.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::oneshot;

    use super::*;

    async fn done<T>(confirms: &mut Confirms<T>) -> Vec<(u64, T)> {
        let mut found = Vec::new();
        poll_fn(|cx| confirms.poll_done(cx, &mut found)).await;
        found
    }

    #[tokio::test]
    async fn future_is_polled_when_added() {
        let mut confirms = Confirms::new();
        assert_eq!(confirms.start(1, std::future::ready(7)), Some(7));
    }

    #[tokio::test]
    async fn completed_futures_are_returned_once() {
        let mut confirms = Confirms::new();
        let senders: Vec<_> = (0..100_u64)
            .map(|number| {
                let (sender, receiver) = oneshot::channel::<u64>();
                assert!(confirms.start(number, receiver).is_none());
                sender
            })
            .collect();
        let mut senders = senders.into_iter().enumerate();
        for (value, sender) in senders.by_ref().take(50) {
            sender.send(value as u64).unwrap();
        }
        let found = done(&mut confirms).await;
        assert_eq!(found.len(), 50);
        assert!(found.iter().all(|(number, value)| value.as_ref() == Ok(number)));
        let waiting = tokio::spawn(async move {
            let mut all = Vec::new();
            while all.len() < 50 {
                all.extend(done(&mut confirms).await);
            }
            all.len()
        });
        for (value, sender) in senders {
            tokio::task::yield_now().await;
            sender.send(value as u64).unwrap();
        }
        assert_eq!(waiting.await.unwrap(), 50);
    }

    #[tokio::test]
    async fn wakes_of_dropped_futures_are_ignored() {
        let mut confirms = Confirms::new();
        let (old, receiver) = oneshot::channel::<u8>();
        confirms.start(1, receiver);
        confirms.clear();
        drop(old);
        let (new, receiver) = oneshot::channel::<u8>();
        confirms.start(2, receiver);
        new.send(3).unwrap();
        assert_eq!(done(&mut confirms).await, [(2, Ok(3))]);
    }
}
