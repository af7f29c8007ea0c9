//! Test of a handler whose event has no topic yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cqrs_core::service::SubscriptionState;
use cqrs_core::{
    EventHandler, EventMediator, HandlerError, MessageBrokerExt, NotificationEvent, Scope, Service,
    Subscription,
};
use cqrs_macros::Notification;
use integration_tests::consuming::fixture::until;
use integration_tests::kafka::{create_topic, fresh_topic, read_all};
use serde::{Deserialize, Serialize};

use super::producing::{config, connect};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", key = "number")]
struct Counted {
    number: u32,
}

/// Emits the event that it gets to another topic.
struct Forward {
    to: String,
    runs: Arc<AtomicUsize>,
}

impl EventHandler<Counted> for Forward {
    async fn handle(&self, event: &Counted, scope: &mut Scope) -> Result<(), HandlerError> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        scope.emit(NotificationEvent::new(event.clone()).with_topic(self.to.clone()));
        Ok(())
    }
}

#[tokio::test]
async fn unroutable_event_holds_its_message() {
    let (from, to) = (fresh_topic("from"), fresh_topic("to"));
    create_topic(&from, 1, &[]).await;
    let mut config = config();
    config.allow_auto_create_topics = false;
    let broker = connect(config).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let events = EventMediator::builder()
        .event::<Counted, _>(Forward { to: to.clone(), runs: Arc::clone(&runs) })
        .broker(broker.clone())
        .build()
        .unwrap();
    let event = NotificationEvent::new(Counted { number: 1 }).with_topic(from.clone());
    broker.publish_event(event).await.unwrap();
    let subscription = Subscription::to(&*from).group("g").json::<Counted>();
    let service = Service::builder(broker).subscribe(subscription, events).build().unwrap();
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    let state = || health.subscriptions().remove(0).state;
    until("the message to be held", async || matches!(state(), SubscriptionState::Stuck { .. }))
        .await;
    let SubscriptionState::Stuck { reason } = state() else { panic!("{:?}", state()) };
    assert!(reason.contains("create the topic"), "{reason}");
    create_topic(&to, 1, &[]).await;
    until("the message to be acked", async || health.subscriptions()[0].counts.handled == 1).await;
    stop.stop();
    let report = tokio::time::timeout(Duration::from_secs(60), running).await.unwrap();
    let counts = report.unwrap().unwrap().subscriptions[0].counts;
    assert_eq!((counts.failed_attempts, counts.dead_lettered), (0, 0));
    assert_eq!((read_all(&to).await.len(), runs.load(Ordering::Relaxed)), (1, 1));
}
