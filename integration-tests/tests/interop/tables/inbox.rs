//! Tests of python-cqrs's inbox table as the inbox of a subscription.

use cqrs_core::{
    EventHandler, EventMediator, HandlerError, MemoryBroker, MessageBrokerExt, NotificationEvent,
    Scope, Service, Subscription,
};
use cqrs_outbox::{PostgresUnitOfWork, PythonInbox};
use integration_tests::consuming::fixture::until;
use integration_tests::interop::{UserCreated, events};
use serde_json::json;

use super::{Tables, payloads};

struct Project;

impl EventHandler<UserCreated> for Project {
    async fn handle(&self, event: &UserCreated, scope: &mut Scope) -> Result<(), HandlerError> {
        let unit = scope.unit_of_work::<PostgresUnitOfWork>().await?;
        let query = sqlx::query("INSERT INTO users VALUES ($1)").bind(&event.user_id);
        query.execute(unit.connection()).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_is_handled_by_the_side_that_stored_it() {
    let tables = Tables::new().await;
    tables.execute("CREATE TABLE users (name text)").await;
    let events: Vec<NotificationEvent<UserCreated>> = events("users");
    let ids: Vec<_> = events.iter().map(|event| event.event_id.to_string()).collect();
    let add = async |ids: &[String]| {
        let request = json!({ "style": "dataclass", "ids": ids, "payload": payloads(1)[0] });
        tables.call("inbox_add", request).await
    };
    assert_eq!(add(&ids[..2]).await, json!([true, true]));

    let broker = MemoryBroker::new();
    let mediator = EventMediator::builder()
        .event::<UserCreated, _>(Project)
        .outbox(tables.schema.outbox.clone())
        .build()
        .unwrap();
    let subscription = Subscription::to("users")
        .group("projection")
        .json::<UserCreated>()
        .inbox(PythonInbox::new("UserCreated"));
    let service =
        Service::builder(broker.clone()).subscribe(subscription, mediator).build().unwrap();
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    for _copy in 0..2 {
        for event in &events {
            broker.publish_event(event.clone()).await.unwrap();
        }
    }
    let counts = || health.subscriptions()[0].counts;
    until("all are acked", async || counts().handled == 8).await;
    stop.stop();
    running.await.unwrap().unwrap();
    assert_eq!(counts().duplicates, 6);
    assert_eq!(tables.schema.column::<i64>("SELECT count(*) FROM users").await, [2]);

    assert_eq!(add(&ids).await, json!([false, false, false, false]));
    let pending = tables.call("inbox_pending", json!({ "style": "dataclass" })).await;
    assert_eq!(pending, json!(ids[..2]), "the rest is handled");
    tables.schema.drop().await;
}
