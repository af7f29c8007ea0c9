//! Tests of the order in which an app stops its parts, of its deadline, and of parts that fail.

#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::consume::{Source, SubscribeError, SubscribeRequest};
use cqrs_core::{
    App, EventHandler, EventMediator, HandlerError, Mediator, MemoryBroker, Message, MessageBroker,
    MessageBrokerExt, PublishError, RequestHandler, Scope, Service, Subscribe, Subscription,
};
use cqrs_macros::{Command, Notification};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "ordered")]
struct Ordered;

#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", topic = "paid")]
struct Paid {
    by: String,
}

#[derive(Command)]
#[cqrs(crate = "cqrs_core")]
struct Pay {
    takes: Duration,
    by: &'static str,
}

struct PayHandler;

impl RequestHandler<Pay> for PayHandler {
    async fn handle(&self, pay: Pay, scope: &mut Scope) -> Result<(), Infallible> {
        sleep(pay.takes).await;
        scope.emit(Paid { by: pay.by.to_owned() });
        Ok(())
    }
}

/// Handles an order in some time, and sends a command at the end.
struct Bill(Duration, Mediator);

impl EventHandler<Ordered> for Bill {
    async fn handle(&self, _: &Ordered, _: &mut Scope) -> Result<(), HandlerError> {
        sleep(self.0).await;
        self.1.send(Pay { takes: Duration::ZERO, by: "service" }).await?;
        Ok(())
    }
}

/// A memory broker that counts its shutdowns and records the time that they had.
#[derive(Debug, Clone, Default)]
struct Watched {
    inner: MemoryBroker,
    shutdowns: Arc<Mutex<Vec<Duration>>>,
}

impl Watched {
    fn shutdowns(&self) -> Vec<Duration> {
        self.shutdowns.lock().unwrap().clone()
    }

    fn payers(&self) -> Vec<String> {
        let payer = |message: Message| {
            let json: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
            json["payload"]["by"].as_str().unwrap().to_owned()
        };
        self.inner.messages("paid").into_iter().map(payer).collect()
    }
}

impl MessageBroker for Watched {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        self.inner.enqueue(message)
    }
    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.inner.try_enqueue(message)
    }
    fn state(&self) -> BrokerState {
        self.inner.state()
    }
    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.shutdowns.lock().unwrap().push(deadline);
        self.inner.shutdown(deadline)
    }
}

impl Subscribe for Watched {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        self.inner.check(requests)
    }
    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        self.inner.subscribe(request)
    }
}

/// A mediator and a service whose handlers take some time, on one broker.
struct Parts {
    broker: Watched,
    mediator: Mediator,
    service: Service,
}

impl Parts {
    async fn new(takes: Duration) -> Self {
        let broker = Watched::default();
        let mediator = Mediator::builder()
            .handle::<Pay, _>(PayHandler)
            .broker(broker.clone())
            .build()
            .unwrap();
        let events = EventMediator::builder()
            .event::<Ordered, _>(Bill(takes, mediator.clone()))
            .broker(broker.clone())
            .build()
            .unwrap();
        let orders = Subscription::to("ordered").group("billing").json::<Ordered>();
        let service = Service::builder(broker.clone()).subscribe(orders, events).build().unwrap();
        broker.publish_event(Ordered).await.unwrap();
        Self { broker, mediator, service }
    }
}

fn second() -> impl Future<Output = ()> {
    sleep(Duration::from_secs(1))
}

#[tokio::test(start_paused = true)]
async fn parts_stop_before_what_they_use() {
    let Parts { broker, mediator, service } = Parts::new(Duration::from_secs(9)).await;
    let health = service.health();
    let of_server = mediator.clone();
    let server_ended = Arc::new(Mutex::new(None));
    let (ended, seen) = (Arc::clone(&server_ended), health.clone());
    let app = App::new()
        .serve("http", |stopping| async move {
            stopping.await;
            // The last request: the service, the mediator and the broker still work.
            of_server.send(Pay { takes: Duration::from_secs(3), by: "server" }).await.unwrap();
            *ended.lock().unwrap() = Some((Instant::now(), seen.is_ready()));
            // A send that goes on after its server.
            tokio::spawn(async move {
                of_server.send(Pay { takes: Duration::from_secs(8), by: "task" }).await.unwrap();
            });
            Ok::<(), io::Error>(())
        })
        .service(service)
        .mediator(mediator.clone());
    let start = Instant::now();
    let report = app.run_until(second()).await.unwrap();

    assert!(report.is_clean(), "{report:?}");
    let (ended, was_ready) = server_ended.lock().unwrap().unwrap();
    assert_eq!((ended - start).as_secs(), 4);
    assert!(was_ready, "the service was stopped before the server had ended");
    assert_eq!(report.services[0].subscriptions[0].counts.handled, 1);
    assert_eq!(broker.payers(), ["server", "service", "task"]);
    assert_eq!(broker.shutdowns().len(), 1, "the clones are one broker, which is closed once");
    assert_eq!(broker.state(), BrokerState::Closed);
    assert_eq!(start.elapsed().as_secs(), 12);
}

#[tokio::test(start_paused = true)]
async fn deadline_leaves_time_for_the_broker() {
    let Parts { broker, mediator, service } = Parts::new(Duration::MAX).await;
    let app = App::new()
        .serve("deaf", |_| std::future::pending::<io::Result<()>>())
        .service(service)
        .mediator(mediator)
        .deadline(Duration::from_secs(20));
    let start = Instant::now();
    let report = app.run_until(second()).await.unwrap();
    assert!(!report.is_clean());
    assert_eq!(report.cancelled_servers, ["deaf".into()]);
    assert_eq!(report.services[0].subscriptions[0].cancelled, 1);
    assert_eq!(report.services[0].subscriptions[0].counts.given_back, 1);
    assert_eq!(broker.shutdowns().len(), 1);
    assert!(broker.shutdowns()[0] > Duration::from_secs(3), "{:?}", broker.shutdowns());
    assert!(start.elapsed() <= Duration::from_secs(21), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn second_stop_ends_everything_at_once() {
    let Parts { broker, mediator, service } = Parts::new(Duration::MAX).await;
    let slow = mediator.clone();
    let app = App::new()
        .serve("deaf", |_| std::future::pending::<io::Result<()>>())
        .service(service)
        .mediator(mediator);
    tokio::spawn(async move { slow.send(Pay { takes: Duration::MAX, by: "nobody" }).await });
    let stop = app.stop_handle();
    let start = Instant::now();
    let report = app
        .run_until(async {
            second().await;
            tokio::spawn(async move {
                second().await;
                stop.stop_now();
            });
        })
        .await
        .unwrap();
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!(report.services[0].subscriptions[0].cancelled, 1);
    assert_eq!(report.unfinished, 1);
    assert_eq!(broker.state(), BrokerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn failed_server_stops_all_and_is_named() {
    let Parts { broker, mediator, service } = Parts::new(Duration::ZERO).await;
    let app = App::new()
        .serve("http", |_| async {
            second().await;
            Err(io::Error::new(io::ErrorKind::AddrInUse, "address in use"))
        })
        .service(service)
        .mediator(mediator);
    let error = app.run_until(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.to_string(), "server http failed and stopped the app");
    assert_eq!(error.source.to_string(), "address in use");
    let debug = "server http failed and stopped the app\ncaused by: address in use";
    assert_eq!(format!("{error:?}"), debug, "what `main` prints");
    assert!(error.report.is_clean(), "{:?}", error.report);
    assert_eq!(broker.payers(), ["service"]);
    assert_eq!(broker.state(), BrokerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn panic_of_a_server_is_its_error() {
    async fn broken() -> io::Result<()> {
        panic!("no routes")
    }
    let other = |stopping: cqrs_core::app::Stopping| async {
        stopping.await;
        Ok::<(), io::Error>(())
    };
    let app = App::new().serve("other", other).serve("http", |_| broken());
    let error = app.run_until(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.part, "server http");
    assert!(error.source.to_string().contains("no routes"), "{error:?}");
    assert!(error.report.cancelled_servers.is_empty(), "{error:?}");
}

#[tokio::test]
async fn health_is_that_of_all_services() {
    let app = App::new();
    assert!(app.health().subscriptions().is_empty());
    let app = app
        .service(Parts::new(Duration::ZERO).await.service)
        .service(Parts::new(Duration::ZERO).await.service);
    let report = app.health().readiness();
    assert_eq!((report.subscriptions.len(), report.status()), (2, 503), "they have not started");
}
