//! [`TestSource`]: a source that a test polls in the runtime's place; used by the conformance suite and by
//! tests of brokers.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::time::{Duration, Instant};

use cqrs_core::Subscribe;
use cqrs_core::consume::{
    Fetch, Source, SourceDelivery, SourceError, SourceStatus, StatusReporter, SubscribeError,
    SubscribeRequest,
};
use tokio::sync::watch;

use crate::error_chain;

/// A source that a test polls, with a limit for every wait.
///
/// The methods panic where the source breaks its contract or lets the test wait for longer than the limit.
pub struct TestSource {
    source: Box<dyn Source>,
    /// The status that the source reports.
    pub status: watch::Receiver<SourceStatus>,
    timeout: Duration,
    /// Received while the test waited for a status.
    received: VecDeque<SourceDelivery>,
}

impl TestSource {
    /// A source that was opened by a request with the reporter of `status`. No wait takes longer than
    /// `timeout`.
    pub fn new(
        source: Box<dyn Source>,
        status: watch::Receiver<SourceStatus>,
        timeout: Duration,
    ) -> Self {
        Self { source, status, timeout, received: VecDeque::new() }
    }

    /// Opens a subscription. The status reporter of `request` is replaced.
    ///
    /// # Errors
    /// The broker's.
    ///
    /// # Panics
    /// When it is not open within `timeout`.
    pub async fn open(
        broker: &(impl Subscribe + ?Sized),
        mut request: SubscribeRequest,
        timeout: Duration,
    ) -> Result<Self, SubscribeError> {
        let (reporter, status) = StatusReporter::new();
        request.status = reporter;
        let opening = tokio::time::timeout(timeout, broker.subscribe(request)).await;
        let source = opening.unwrap_or_else(|_| panic!("subscribe: not after {timeout:?}"))?;
        Ok(Self::new(source, status, timeout))
    }

    /// The next delivery or error; `None` at the end of the source. Waits without a limit.
    pub async fn poll(&mut self) -> Option<Result<SourceDelivery, SourceError>> {
        match self.received.pop_front() {
            Some(delivery) => Some(Ok(delivery)),
            None => poll_fn(|cx| self.source.poll_next(cx)).await,
        }
    }

    /// The next delivery.
    pub async fn next(&mut self) -> SourceDelivery {
        let timeout = self.timeout;
        let next = self.next_within(timeout).await;
        next.unwrap_or_else(|| panic!("no delivery within {timeout:?}"))
    }

    /// The next delivery, if one is received within `time`.
    pub async fn next_within(&mut self, time: Duration) -> Option<SourceDelivery> {
        let next = tokio::time::timeout(time, self.poll()).await.ok()?;
        Some(sound(next.expect("a source ends only after a stop")))
    }

    /// The deliveries that the source adds at once to a [`Fetch`] with this room, as the runtime takes them: at least
    /// one.
    pub async fn fetch(&mut self, room: usize) -> Vec<SourceDelivery> {
        assert!(self.received.is_empty(), "`poll_until` has received deliveries: take these first");
        let mut fetch = Fetch::new(room);
        let Self { source, timeout, .. } = self;
        let polling =
            tokio::time::timeout(*timeout, poll_fn(|cx| source.poll_fetch(cx, &mut fetch)));
        let polled = polling.await.unwrap_or_else(|_| panic!("no delivery within {timeout:?}"));
        sound(polled.expect("a source ends only after a stop"));
        let fetched: Vec<_> = fetch.drain().collect();
        assert!((1..=room).contains(&fetched.len()), "{} in a room of {room}", fetched.len());
        fetched
    }

    /// The next `count` deliveries.
    pub async fn take(&mut self, count: usize) -> Vec<SourceDelivery> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.next().await);
        }
        taken
    }

    /// The next `count` deliveries, each begun as for a handler.
    pub async fn begin(&mut self, count: usize) -> Vec<SourceDelivery> {
        let mut begun = self.take(count).await;
        for delivery in &mut begun {
            assert!(delivery.settle.begin(), "the delivery was revoked");
        }
        begun
    }

    /// Acks the next `count` deliveries, one after the other, and returns their bodies.
    pub async fn ack(&mut self, count: usize) -> Vec<String> {
        let mut acked = Vec::with_capacity(count);
        while acked.len() < count {
            acked.push(self.ack_next().await);
        }
        acked
    }

    /// Acks the next delivery, which must not be revoked, and returns its body.
    pub async fn ack_next(&mut self) -> String {
        let delivery = self.next().await;
        let text = text(&delivery);
        assert!(ack(delivery).await, "{text} was revoked");
        text
    }

    /// Acks the next delivery that is not revoked, and returns its body.
    pub async fn ack_next_unrevoked(&mut self) -> String {
        let timeout = self.timeout;
        let acked = self.ack_within(timeout).await;
        acked.unwrap_or_else(|| panic!("no delivery within {timeout:?}"))
    }

    /// Acks the next delivery that is not revoked, if one is received within `time`, and returns its body.
    pub async fn ack_within(&mut self, time: Duration) -> Option<String> {
        let end = Instant::now() + time;
        loop {
            let delivery = self.next_within(end.saturating_duration_since(Instant::now())).await?;
            let text = text(&delivery);
            if ack(delivery).await {
                return Some(text);
            }
        }
    }

    /// Checks that nothing is received within `time`, and that the source does not end.
    pub async fn nothing_within(&mut self, time: Duration) {
        if let Some(next) = self.next_within(time).await {
            panic!("received {:?}", text(&next));
        }
    }

    /// Checks that a stopped source delivers nothing within `time`. It may end.
    pub async fn nothing_after_stop(&mut self, time: Duration) {
        if let Ok(Some(next)) = tokio::time::timeout(time, self.poll()).await {
            panic!("received {:?}", text(&sound(next)));
        }
    }

    /// Waits for a status without polling.
    pub async fn wait_for(&self, is: impl FnMut(&SourceStatus) -> bool) -> SourceStatus {
        let mut status = self.status.clone();
        match tokio::time::timeout(self.timeout, status.wait_for(is)).await {
            Ok(Ok(status)) => status.clone(),
            _ => panic!("not after {:?}, but {:?}", self.timeout, *self.status.borrow()),
        }
    }

    /// Waits for a status and polls meanwhile: a source may do nothing unless it is polled. The next calls
    /// return what is received.
    pub async fn poll_until(&mut self, is: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        let Self { source, status, received, timeout } = self;
        let waiting = async {
            loop {
                tokio::select! {
                    found = status.wait_for(|now| is(now)) => {
                        return found.ok().map(|status| status.clone());
                    }
                    next = poll_fn(|cx| source.poll_next(cx)) => {
                        received.push_back(sound(next.expect("a source ends only after a stop")));
                    }
                }
            }
        };
        match tokio::time::timeout(*timeout, waiting).await {
            Ok(Some(status)) => status,
            _ => panic!("not after {timeout:?}, but {:?}", *self.status.borrow()),
        }
    }

    /// Stops fetching.
    pub async fn stop(&mut self) {
        let stopped = tokio::time::timeout(self.timeout, self.source.stop()).await;
        assert!(stopped.is_ok(), "stop: not after {:?}", self.timeout);
    }

    /// Stops and closes it as the runtime does; the close must succeed.
    pub async fn close(mut self) {
        self.stop().await;
        let deadline = self.timeout;
        let (_, closed) = self.close_within(deadline).await;
        closed.unwrap_or_else(|error| panic!("close: {}", error_chain(&error)));
    }

    /// Closes it with a deadline. Returns the time that the close took, and its result.
    ///
    /// # Errors
    /// The source's.
    pub async fn close_within(self, deadline: Duration) -> (Duration, Result<(), SourceError>) {
        let (timeout, start) = (self.timeout, Instant::now());
        let closing = self.source.close(deadline);
        match tokio::time::timeout(deadline + timeout, closing).await {
            Ok(closed) => (start.elapsed(), closed),
            Err(_) => panic!("close: not {timeout:?} after its deadline"),
        }
    }
}

impl fmt::Debug for TestSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

fn sound<T>(next: Result<T, SourceError>) -> T {
    next.unwrap_or_else(|error| panic!("the source failed: {}", error_chain(&error)))
}

/// Set if the source consumes.
pub fn is_consuming(status: &SourceStatus) -> bool {
    *status == SourceStatus::Consuming
}

/// Set if the source has lost its connection.
pub fn is_disconnected(status: &SourceStatus) -> bool {
    matches!(status, SourceStatus::Disconnected { .. })
}

/// The body of a delivery as text.
pub fn text(delivery: &SourceDelivery) -> String {
    String::from_utf8_lossy(&delivery.message.bytes()).into_owned()
}

/// Begins and acks a delivery as the runtime does. `false`: it was revoked before.
///
/// # Panics
/// When the ack fails.
pub async fn ack(mut delivery: SourceDelivery) -> bool {
    if !delivery.settle.begin() {
        return false;
    }
    match delivery.settle.ack().await {
        Ok(()) => true,
        Err(error) => panic!("ack: {}", error_chain(&error)),
    }
}
