//! [`FlawedSource`]: a source of the in-memory broker with one flaw and a simulated connection.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cqrs_core::MemoryBroker;
use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::{
    Fetch, RETRY_HEADERS, Source, SourceDelivery, SourceError, SourceStatus, StatusReporter,
    Subscribe, SubscribeRequest,
};
use cqrs_core::message::Headers;
use tokio::sync::watch;

use super::Flaw;
use super::flawed::{Connection, Flawed, SourceState, TOMBSTONE};
use super::settle::{FlawedSettle, InFlight};

pub(super) struct FlawedSource {
    flaw: Flaw,
    sound: MemoryBroker,
    request: SubscribeRequest,
    group: String,
    status: StatusReporter,
    shared: Arc<SourceState>,
    /// `None` while the connection is down.
    inner: Option<Box<dyn Source>>,
    out: Vec<Arc<InFlight>>,
    connection: watch::Receiver<Connection>,
    seen: Connection,
    was_lost: bool,
    /// Wakes when the connection changes.
    changed: Option<BoxFuture<'static, ()>>,
}

impl FlawedSource {
    pub(super) fn open(
        broker: &Flawed,
        mut request: SubscribeRequest,
        asked: &SubscribeRequest,
    ) -> Self {
        let group = asked.group.to_string();
        *broker.shared.members.lock().unwrap().entry(group.clone()).or_default() += 1;
        request.status = StatusReporter::new().0;
        let mut source = Self {
            flaw: broker.flaw,
            sound: broker.sound.clone(),
            request,
            group,
            status: asked.status.clone(),
            shared: Arc::clone(&broker.shared),
            inner: None,
            out: Vec::new(),
            connection: broker.connection.clone(),
            seen: *broker.connection.borrow(),
            was_lost: false,
            changed: None,
        };
        source.connect();
        source
    }

    fn connect(&mut self) {
        let mut opening = Subscribe::subscribe(&self.sound, self.request.clone());
        let opened = opening.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(opening);
        let Poll::Ready(Ok(inner)) = opened else { panic!("the in-memory broker does not wait") };
        self.inner = Some(inner);
        if self.flaw != Flaw::StaysDisconnected || !self.was_lost {
            self.status.report(SourceStatus::Consuming);
        }
    }

    /// Applies the changes of the connection.
    fn follow_connection(&mut self, cx: &mut Context<'_>) {
        loop {
            let now = *self.connection.borrow_and_update();
            if now != self.seen {
                let was_lost = now.cuts != self.seen.cuts || now.is_down;
                self.seen = now;
                if was_lost {
                    self.lose_connection();
                }
                if !now.is_down && self.inner.is_none() {
                    self.connect();
                }
            }
            let mut connection = self.connection.clone();
            let changed = self
                .changed
                .get_or_insert_with(|| Box::pin(async move { drop(connection.changed().await) }));
            match Pin::new(changed).poll(cx) {
                Poll::Ready(()) => self.changed = None,
                Poll::Pending => return,
            }
            if self.connection.has_changed().is_err() {
                return;
            }
        }
    }

    fn lose_connection(&mut self) {
        if self.flaw != Flaw::HidesOutage {
            let last_error = "cut".into();
            self.status.report(SourceStatus::Disconnected { last_error });
        }
        if self.flaw == Flaw::LosesOnCut {
            self.ack_all();
        }
        self.inner = None;
        self.was_lost = true;
    }

    /// Acks all that is in flight.
    fn ack_all(&mut self) {
        self.out.drain(..).for_each(|out| out.ack_now());
    }

    fn deliver(&mut self, mut delivery: SourceDelivery) -> SourceDelivery {
        let message = Arc::make_mut(&mut delivery.message);
        let asked = message.headers.remove(TOMBSTONE);
        if asked && self.flaw != Flaw::TombstoneIsEmpty {
            message.body = None;
        }
        match self.flaw {
            Flaw::ForgetsHeaders => message.headers = Headers::new(),
            Flaw::ForgetsKey => message.key = None,
            Flaw::RetryLeavesHeaders if delivery.retry.attempts > 0 => {
                message.headers.insert(RETRY_HEADERS[0], "1").unwrap();
            }
            Flaw::ForgetsLastFailure => delivery.retry.last_failure = None,
            Flaw::HidesRedelivery => message.redelivered = false,
            _ => {}
        }
        let place = (self.group.clone(), message.topic.to_string(), message.offset.unwrap_or(-1));
        let started = self.shared.started.lock().unwrap().get(&place).copied();
        if self.flaw != Flaw::ForgetsCrashes {
            delivery.retry.crashes = started.unwrap_or_default();
        }
        let (flaw, shared) = (self.flaw, Arc::clone(&self.shared));
        let out = Arc::new(InFlight {
            inner: Mutex::new(Some(delivery.settle)),
            message: (*delivery.message).clone(),
            request: self.request.clone(),
            sound: self.sound.clone(),
            place,
            shared,
            flaw,
        });
        self.out.retain(|out| Arc::strong_count(out) > 1);
        self.out.push(Arc::clone(&out));
        delivery.settle = Box::new(FlawedSettle::new(out));
        delivery
    }
}

impl FlawedSource {
    fn poll_delivery(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<SourceDelivery, SourceError>>> {
        self.follow_connection(cx);
        loop {
            let Some(inner) = &mut self.inner else { return Poll::Pending };
            let next = match inner.poll_next(cx) {
                Poll::Ready(Some(Ok(delivery))) => delivery,
                other => return other,
            };
            let is_empty = next.message.is_empty() && next.message.headers.get(TOMBSTONE).is_none();
            let delivery = self.deliver(next);
            if is_empty && self.flaw == Flaw::SkipsEmpty {
                self.out.last().expect("it is out").ack_now();
                continue;
            }
            return Poll::Ready(Some(Ok(delivery)));
        }
    }
}

impl Source for FlawedSource {
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &mut Fetch,
    ) -> Poll<Option<Result<(), SourceError>>> {
        match self.flaw {
            Flaw::IgnoresRoom => {
                let mut larger = Fetch::new(fetch.room() + 1);
                let filled = larger.poll_fill(|_| self.poll_delivery(cx));
                larger.drain().for_each(|delivery| fetch.push(delivery));
                filled
            }
            Flaw::ReversesFullFetch => {
                let filled = fetch.poll_fill(|_| self.poll_delivery(cx));
                if fetch.room() == 0 {
                    let mut added: Vec<_> = fetch.drain().collect();
                    added.reverse();
                    added.into_iter().for_each(|delivery| fetch.push(delivery));
                }
                filled
            }
            _ => fetch.poll_fill(|_| self.poll_delivery(cx)),
        }
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        match &mut self.inner {
            Some(inner) if self.flaw != Flaw::StopKeepsDelivering => inner.stop(),
            _ => Box::pin(async {}),
        }
    }

    fn close(self: Box<Self>, _deadline: Duration) -> BoxFuture<'static, Result<(), SourceError>> {
        let is_out = self.out.iter().any(|out| Arc::strong_count(out) > 1 && out.is_unsettled());
        let hangs = self.flaw == Flaw::CloseHangs && is_out;
        drop(self);
        Box::pin(async move {
            match hangs {
                true => std::future::pending().await,
                false => Ok(()),
            }
        })
    }
}

impl Drop for FlawedSource {
    fn drop(&mut self) {
        *self.shared.members.lock().unwrap().entry(self.group.clone()).or_default() -= 1;
        if [Flaw::AcksOnReceive, Flaw::LosesOnCrash].contains(&self.flaw) {
            self.ack_all();
        }
    }
}

impl std::fmt::Debug for FlawedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlawedSource").field("flaw", &self.flaw).finish_non_exhaustive()
    }
}
