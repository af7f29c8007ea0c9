//! The confirms of one channel, as futures of lapin; part of the producer, polled by the publisher.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio_util::sync::ReusableBoxFuture;

/// Futures of a channel's confirms, driven together.
///
/// Unlike `FuturesUnordered`, "pending" means that every future woken before has been polled;
/// [`Unconfirmed`](super::unconfirmed::Unconfirmed) depends on it. lapin resolves confirms one after the
/// other on one thread, and wakes each before it resolves the next; so once no woken future is left,
/// the confirms seen so far have no gap: all that were resolved before one of them were seen too.
///
/// A future is in a place, whose allocations serve the next future once this one has completed. A late
/// wake-up of a completed future polls the next one of its place, or none.
pub(crate) struct Confirms<T> {
    places: Vec<Place<T>>,
    /// Indices of the places without a future.
    free: Vec<usize>,
    woken: Arc<Woken>,
    batch: Vec<usize>,
}

struct Place<T> {
    /// Of the future; `None` once it has completed.
    number: Option<u64>,
    future: ReusableBoxFuture<'static, T>,
    waker: Waker,
}

/// The places whose futures were woken.
#[derive(Default)]
struct Woken {
    places: Mutex<Vec<usize>>,
    owner: AtomicWaker,
}

struct WakePlace {
    place: usize,
    woken: Arc<Woken>,
}

impl<T> Confirms<T> {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), woken: Arc::default(), batch: Vec::new() }
    }

    /// Adds `future` under a number and polls it once: that hands the message to lapin, in the order of
    /// these calls.
    pub(crate) fn start(
        &mut self,
        number: u64,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let index = match self.free.pop() {
            Some(index) => {
                self.places[index].future.set(future);
                index
            }
            None => {
                let index = self.places.len();
                let wake = WakePlace { place: index, woken: Arc::clone(&self.woken) };
                let (future, waker) = (ReusableBoxFuture::new(future), Waker::from(Arc::new(wake)));
                self.places.push(Place { number: None, future, waker });
                index
            }
        };
        self.places[index].number = Some(number);
        self.poll(index).map(|(_, output)| output)
    }

    /// Polls the future of a place. Frees the place and returns the number and the output if it completed.
    fn poll(&mut self, index: usize) -> Option<(u64, T)> {
        let Place { number, future, waker } = self.places.get_mut(index)?;
        // Woken again after it completed.
        let done = (*number)?;
        match future.poll(&mut Context::from_waker(waker)) {
            Poll::Pending => None,
            Poll::Ready(output) => {
                *number = None;
                self.free.push(index);
                Some((done, output))
            }
        }
    }

    /// Ready when a future completed: moves all completed ones to `done`, without a gap (see the type).
    /// Cancel safe: nothing is moved before it returns.
    pub(crate) fn poll_done(&mut self, cx: &mut Context<'_>, done: &mut Vec<(u64, T)>) -> Poll<()> {
        self.woken.owner.register(cx.waker());
        loop {
            let mut batch = std::mem::take(&mut self.batch);
            self.woken.take(&mut batch);
            let is_empty = batch.is_empty();
            done.extend(batch.drain(..).filter_map(|place| self.poll(place)));
            self.batch = batch;
            if is_empty {
                return match done.is_empty() {
                    true => Poll::Pending,
                    false => Poll::Ready(()),
                };
            }
        }
    }

    /// Moves the futures that have completed to `done`, as [`poll_done`](Self::poll_done) does, and waits for none.
    pub(crate) fn take_done(&mut self, done: &mut Vec<(u64, T)>) {
        let _all_taken = self.poll_done(&mut Context::from_waker(Waker::noop()), done);
    }

    /// Drops all futures.
    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }
}

impl Woken {
    fn take(&self, batch: &mut Vec<usize>) {
        std::mem::swap(&mut *self.places.lock().unwrap_or_else(PoisonError::into_inner), batch);
    }
}

impl Wake for WakePlace {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let first = {
            let mut places = self.woken.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.push(self.place);
            places.len() == 1
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
    async fn what_has_completed_is_taken_without_a_wait() {
        let mut confirms = Confirms::new();
        let (mut found, mut senders) = (Vec::new(), Vec::new());
        for number in 0..3 {
            let (sender, receiver) = oneshot::channel::<u8>();
            confirms.start(number, receiver);
            senders.push(sender);
        }
        confirms.take_done(&mut found);
        assert!(found.is_empty());
        let waits = senders.pop().unwrap();
        senders.into_iter().for_each(|sender| sender.send(7).unwrap());
        // Beside what is there already.
        found.push((9, Ok(0)));
        confirms.take_done(&mut found);
        assert_eq!(found, [(9, Ok(0)), (0, Ok(7)), (1, Ok(7))]);
        waits.send(8).unwrap();
        assert_eq!(done(&mut confirms).await, [(2, Ok(8))]);
    }

    #[tokio::test]
    async fn places_are_used_again() {
        let mut confirms = Confirms::new();
        for number in 0..1_000_u64 {
            let (sender, receiver) = oneshot::channel::<u64>();
            let (other, pending) = oneshot::channel::<u64>();
            confirms.start(2 * number, receiver);
            confirms.start(2 * number + 1, pending);
            sender.send(number).unwrap();
            assert_eq!(done(&mut confirms).await, [(2 * number, Ok(number))]);
            other.send(number).unwrap();
            assert_eq!(done(&mut confirms).await, [(2 * number + 1, Ok(number))]);
        }
        assert_eq!(confirms.places.len(), 2);
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
