//! [`Way`]: a publisher and the consumer at its other end, which lives until the comparison ends.

use std::future::Future;
use std::sync::Arc;

use cqrs_core::{
    EventHandler, EventMediator, HandlerError, NotificationEvent, Scope, Service, Subscribe,
    Subscription,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::recorder::{Pace, Recorder};
use crate::consume::decoding;
use crate::event::Benched;
use crate::measure::Round;
use crate::publish::{Ours, Publisher};

pub(crate) struct Way<P> {
    publisher: P,
    recorder: Recorder,
    stop: Arc<Notify>,
    consuming: JoinHandle<()>,
}

impl<P: Publisher> Way<P> {
    /// Starts a raw consumer, which `consume` makes, and returns when messages arrive there.
    pub(crate) async fn raw<F>(publisher: P, consume: impl FnOnce(Recorder) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (recorder, stop) = (Recorder::default(), Arc::new(Notify::new()));
        let (consuming, stopped) = (consume(recorder.clone()), Arc::clone(&stop));
        let consuming = tokio::spawn(async move {
            tokio::select! {
                () = consuming => {}
                () = stopped.notified() => {}
            }
        });
        recorder.warm_up(&publisher).await;
        Self { publisher, recorder, stop, consuming }
    }

    pub(crate) async fn round(&self, pace: Pace) -> Round {
        self.recorder.measure(self.publisher.clone(), pace).await
    }

    pub(crate) async fn end(self) {
        self.stop.notify_one();
        self.consuming.await.expect("the consumer");
    }
}

struct Record(Recorder);

impl EventHandler<NotificationEvent<Benched>> for Record {
    async fn handle(
        &self,
        event: &NotificationEvent<Benched>,
        _: &mut Scope,
    ) -> Result<(), HandlerError> {
        self.0.handled(&event.payload);
        Ok(())
    }
}

impl Way<Ours> {
    /// Starts a service, and returns when messages arrive there.
    pub(crate) async fn ours(
        publisher: Ours,
        broker: impl Subscribe,
        subscription: Subscription,
    ) -> Self {
        let (recorder, stop) = (Recorder::default(), Arc::new(Notify::new()));
        let events = EventMediator::builder()
            .event::<NotificationEvent<Benched>, _>(Record(recorder.clone()))
            .build()
            .expect("a mediator");
        let subscription = decoding(&publisher.template, subscription);
        let service =
            Service::builder(broker).subscribe(subscription, events).build().expect("a service");
        let stopped = Arc::clone(&stop);
        let consuming = tokio::spawn(async move {
            let _report = service
                .run_until(async move { stopped.notified().await })
                .await
                .expect("it ends well");
        });
        recorder.warm_up(&publisher).await;
        Self { publisher, recorder, stop, consuming }
    }
}
