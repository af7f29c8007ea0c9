//! The writes and confirms of one channel, as futures of lapin; part of the producer, polled by the publisher.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio_util::sync::ReusableBoxFuture;

/// Futures of a channel's writes and confirms, driven together. `C` is the future of a confirm.
///
/// Unlike `FuturesUnordered`, "pending" means that every future that could be ready has been polled;
/// [`Unconfirmed`](super::unconfirmed::Unconfirmed) depends on it. lapin resolves confirms one after the
/// other on one thread, and wakes each before it resolves the next; so once no woken future is left,
/// the confirms seen so far have no gap: all that were resolved before one of them were seen too.
///
/// lapin writes the messages of a channel in the order in which it got them, and resolves the confirm of a message
/// after its write. So only the oldest write is awaited. The confirm of a message that is not known as written has no
/// waker yet, and may be resolved before one that is seen; its write then ended before, too. So the writes are polled
/// again after each confirm that is seen, until the oldest is pending.
///
/// A confirm is in a place, whose waker serves the next confirm once this one has completed. A late wake-up of a
/// completed confirm polls the next one of its place, or none.
pub(crate) struct Confirms<C: Future + Unpin> {
    /// Messages that lapin did not write yet, by their numbers, in order.
    unwritten: VecDeque<(u64, Write<C>)>,
    /// Completed writes, whose allocations serve the next ones.
    spare: Vec<Write<C>>,
    places: Vec<Place<C>>,
    /// Indices of the places without a confirm.
    free: Vec<usize>,
    woken: Arc<Woken>,
    batch: Vec<usize>,
}

/// The future of a write. It ends with the future of the confirm, or with the output if there is none.
type Write<C> = ReusableBoxFuture<'static, Result<C, <C as Future>::Output>>;

struct Place<C> {
    /// The confirm and its number; `None` once it has completed.
    confirm: Option<(u64, C)>,
    waker: Waker,
}

/// The places whose confirms were woken.
#[derive(Default)]
struct Woken {
    places: Mutex<Vec<usize>>,
    owner: AtomicWaker,
}

struct WakePlace {
    place: usize,
    woken: Arc<Woken>,
}

impl<C: Future + Unpin> Confirms<C> {
    pub(crate) fn new() -> Self {
        Self {
            unwritten: VecDeque::new(),
            spare: Vec::new(),
            places: Vec::new(),
            free: Vec::new(),
            woken: Arc::default(),
            batch: Vec::new(),
        }
    }

    /// The number of messages that lapin did not write yet, as far as they were polled.
    pub(crate) fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Adds the write of a message under a number and polls it once: that hands the message to lapin, in the order
    /// of these calls.
    pub(crate) fn start(
        &mut self,
        number: u64,
        write: impl Future<Output = Result<C, C::Output>> + Send + 'static,
    ) -> Option<C::Output> {
        let mut write = match self.spare.pop() {
            Some(mut spare) => {
                spare.set(write);
                spare
            }
            None => ReusableBoxFuture::new(write),
        };
        match write.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => {
                self.unwritten.push_back((number, write));
                None
            }
            Poll::Ready(written) => {
                self.spare.push(write);
                self.written(number, written)
            }
        }
    }

    /// Polls the confirm of a message that was written.
    fn written(&mut self, number: u64, written: Result<C, C::Output>) -> Option<C::Output> {
        let confirm = match written {
            Ok(confirm) => Some((number, confirm)),
            Err(output) => return Some(output),
        };
        let index = self.free.pop().unwrap_or_else(|| {
            let place = self.places.len();
            let waker = Waker::from(Arc::new(WakePlace { place, woken: Arc::clone(&self.woken) }));
            self.places.push(Place { confirm: None, waker });
            place
        });
        self.places[index].confirm = confirm;
        self.poll(index).map(|(_, output)| output)
    }

    /// Polls the confirm of a place. Frees the place and returns the number and the output if it completed.
    fn poll(&mut self, index: usize) -> Option<(u64, C::Output)> {
        let Place { confirm, waker } = self.places.get_mut(index)?;
        // `None` if it was woken again after it completed.
        let (number, future) = confirm.as_mut()?;
        match Pin::new(future).poll(&mut Context::from_waker(waker)) {
            Poll::Pending => None,
            Poll::Ready(output) => {
                let done = (*number, output);
                *confirm = None;
                self.free.push(index);
                Some(done)
            }
        }
    }

    /// Ready when a message has its answer: moves all answers to `done`, without a gap (see the type).
    /// Cancel safe: nothing is moved before it returns.
    pub(crate) fn poll_done(
        &mut self,
        cx: &mut Context<'_>,
        done: &mut Vec<(u64, C::Output)>,
    ) -> Poll<()> {
        self.woken.owner.register(cx.waker());
        loop {
            self.poll_writes(cx, done);
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

    /// Polls the writes in order until one is pending.
    fn poll_writes(&mut self, cx: &mut Context<'_>, done: &mut Vec<(u64, C::Output)>) {
        while let Some((number, write)) = self.unwritten.front_mut()
            && let Poll::Ready(written) = write.poll(cx)
        {
            let number = *number;
            self.spare.extend(self.unwritten.pop_front().map(|(_, write)| write));
            done.extend(self.written(number, written).map(|output| (number, output)));
        }
    }

    /// Moves the answers that are there to `done`, as [`poll_done`](Self::poll_done) does, and waits for none.
    pub(crate) fn take_done(&mut self, done: &mut Vec<(u64, C::Output)>) {
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
    use std::future::{poll_fn, ready};

    use tokio::sync::oneshot;

    use super::*;

    type Receiver = oneshot::Receiver<u64>;
    type Output = Result<u64, oneshot::error::RecvError>;

    async fn done(confirms: &mut Confirms<Receiver>) -> Vec<(u64, Output)> {
        let mut found = Vec::new();
        poll_fn(|cx| confirms.poll_done(cx, &mut found)).await;
        found
    }

    /// Starts a message that is written at once.
    fn start(confirms: &mut Confirms<Receiver>, number: u64, confirm: Receiver) -> Option<Output> {
        confirms.start(number, ready(Ok(confirm)))
    }

    /// Starts a message whose write and confirm are sent later.
    fn start_write(
        confirms: &mut Confirms<Receiver>,
        number: u64,
    ) -> (oneshot::Sender<()>, oneshot::Sender<u64>) {
        let (write, written) = oneshot::channel();
        let (confirm, confirmed) = oneshot::channel();
        let writing = async move { written.await.map(|()| confirmed).map_err(Err) };
        assert_eq!(confirms.start(number, writing), None);
        (write, confirm)
    }

    #[tokio::test]
    async fn future_is_polled_when_added() {
        let mut confirms = Confirms::<Receiver>::new();
        assert_eq!(confirms.start(1, ready(Err(Ok(7)))), Some(Ok(7)));
        let (sender, receiver) = oneshot::channel();
        sender.send(8).unwrap();
        assert_eq!(start(&mut confirms, 2, receiver), Some(Ok(8)));
    }

    #[tokio::test]
    async fn writes_are_seen_in_order_and_before_confirms() {
        let mut confirms = Confirms::new();
        let [first, second, third] = [1, 2, 3].map(|number| start_write(&mut confirms, number));
        first.0.send(()).unwrap();
        second.0.send(()).unwrap();
        let mut found = Vec::new();
        confirms.take_done(&mut found);
        assert_eq!((found.len(), confirms.unwritten()), (0, 1));
        // Both confirms of the same instant: the later one is not seen without the earlier one.
        third.0.send(()).unwrap();
        third.1.send(3).unwrap();
        second.1.send(2).unwrap();
        confirms.take_done(&mut found);
        found.sort_unstable_by_key(|(number, _)| *number);
        assert_eq!(found, [(2, Ok(2)), (3, Ok(3))]);
        first.1.send(1).unwrap();
        assert_eq!(done(&mut confirms).await, [(1, Ok(1))]);
    }

    #[tokio::test]
    async fn write_wakes_the_owner_and_failed_write_is_an_answer() {
        let mut confirms = Confirms::new();
        let [first, second] = [1, 2].map(|number| start_write(&mut confirms, number));
        let waiting = tokio::spawn(async move { (done(&mut confirms).await, confirms) });
        tokio::task::yield_now().await;
        first.1.send(1).unwrap();
        first.0.send(()).unwrap();
        let (found, mut confirms) = waiting.await.unwrap();
        assert_eq!(found, [(1, Ok(1))]);
        drop(second.0);
        assert!(matches!(done(&mut confirms).await[..], [(2, Err(_))]));
        assert_eq!(confirms.unwritten(), 0);
    }

    #[tokio::test]
    async fn confirm_resolved_before_a_seen_one_is_seen() {
        let mut confirms = Confirms::new();
        let (seen, receiver) = oneshot::channel();
        assert_eq!(start(&mut confirms, 1, receiver), None);
        let (earlier, confirm) = oneshot::channel();
        let (mut senders, mut confirm, mut polls) = (Some((earlier, seen)), Some(confirm), 0);
        // Written and confirmed right after its second poll; the other one is confirmed then.
        let write = poll_fn(move |_| {
            polls += 1;
            if polls == 2 {
                let (earlier, seen) = senders.take().unwrap();
                earlier.send(0).unwrap();
                seen.send(1).unwrap();
            }
            match polls {
                3 => Poll::Ready(Ok(confirm.take().unwrap())),
                _ => Poll::Pending,
            }
        });
        assert_eq!(confirms.start(2, write), None);
        let mut found = Vec::new();
        confirms.take_done(&mut found);
        assert_eq!(found, [(1, Ok(1)), (2, Ok(0))]);
    }

    /// A thread resolves as lapin's does: each write in order, each confirm after its write, in any order. A confirm
    /// that is resolved before another one must not be seen after it.
    #[tokio::test]
    async fn confirms_that_are_seen_have_no_gap() {
        for round in 0..2_000_usize {
            let mut confirms = Confirms::new();
            let (mut writes, mut answers): (Vec<_>, Vec<_>) =
                (0..8).map(|number| start_write(&mut confirms, number)).unzip();
            let server = std::thread::spawn(move || {
                let mut order = Vec::new();
                let mut number = 0;
                while !writes.is_empty() {
                    let batch = (round + number) % 3 + 1;
                    for write in writes.drain(..batch.min(writes.len())) {
                        write.send(()).unwrap();
                        number += 1;
                    }
                    // Some stay unanswered until a later batch.
                    let rest = if writes.is_empty() { 0 } else { round % 3 };
                    while number - order.len() > rest {
                        let left = 8 - order.len();
                        let index = (round + left) % (number - order.len());
                        let answer = answers.remove(index);
                        answer.send(order.len() as u64).unwrap();
                        order.push(());
                    }
                }
            });
            let mut seen = Vec::new();
            while seen.len() < 8 {
                let found = done(&mut confirms).await;
                seen.extend(found.into_iter().map(|(_, place)| place.unwrap()));
                // The places in the order of the answers, so far without a gap.
                let mut sorted = seen.clone();
                sorted.sort_unstable();
                assert!(sorted.iter().enumerate().all(|(index, place)| index as u64 == *place));
            }
            server.join().unwrap();
        }
    }

    #[tokio::test]
    async fn completed_futures_are_returned_once() {
        let mut confirms = Confirms::new();
        let senders: Vec<_> = (0..100_u64)
            .map(|number| {
                let (sender, receiver) = oneshot::channel::<u64>();
                assert!(start(&mut confirms, number, receiver).is_none());
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
            let (sender, receiver) = oneshot::channel::<u64>();
            start(&mut confirms, number, receiver);
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
            start(&mut confirms, 2 * number, receiver);
            start(&mut confirms, 2 * number + 1, pending);
            sender.send(number).unwrap();
            assert_eq!(done(&mut confirms).await, [(2 * number, Ok(number))]);
            other.send(number).unwrap();
            assert_eq!(done(&mut confirms).await, [(2 * number + 1, Ok(number))]);
        }
        assert_eq!((confirms.places.len(), confirms.spare.len()), (2, 1));
    }

    #[tokio::test]
    async fn wakes_of_dropped_futures_are_ignored() {
        let mut confirms = Confirms::new();
        let (old, receiver) = oneshot::channel::<u64>();
        start(&mut confirms, 1, receiver);
        confirms.clear();
        drop(old);
        let (new, receiver) = oneshot::channel::<u64>();
        start(&mut confirms, 2, receiver);
        new.send(3).unwrap();
        assert_eq!(done(&mut confirms).await, [(2, Ok(3))]);
    }
}
