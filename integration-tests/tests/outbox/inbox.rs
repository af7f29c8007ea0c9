//! Tests of the inbox: duplicates, kills of the consumer, and an outage of the database.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::scope::Inbox as _;
use cqrs_core::{
    EventHandler, EventMediator, MemoryBroker, MessageBrokerExt, NotificationEvent, Service,
    Subscription, UnitOfWork,
};
use cqrs_testkit::FaultProxy;
use integration_tests::consuming::fixture::{count, until, until_within};
use tokio::time::Instant;
use uuid::Uuid;

use super::*;

on_each_database!(
    copy_waits_for_the_first_transaction,
    purge_deletes_only_marks_past_retention,
    killed_consumers_have_each_effect_once,
    outage_of_the_database_loses_nothing,
);

/// Inserts the user of each event.
struct Project<DB>(PhantomData<DB>);

impl<DB: TestDatabase> EventHandler<UserAdded> for Project<DB> {
    async fn handle(&self, event: &UserAdded, scope: &mut Scope) -> Result<(), HandlerError> {
        insert_user::<DB>(scope, &event.name).await
    }
}

fn service<DB: TestDatabase>(
    broker: &MemoryBroker,
    outbox: &Outbox<DB>,
    concurrency: usize,
) -> Service {
    let mediator = EventMediator::builder()
        .event::<UserAdded, _>(Project(PhantomData::<DB>))
        .outbox(outbox.clone())
        .build()
        .unwrap();
    let subscription = Subscription::to("outbox-users")
        .group("projection")
        .json::<UserAdded>()
        .concurrency(concurrency)
        .inbox(outbox.inbox());
    Service::builder(broker.clone()).subscribe(subscription, mediator).build().unwrap()
}

/// The mark of a copy waits for the transaction of the first, and sees how that ended.
async fn copy_waits_for_the_first_transaction<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    for commits in [true, false] {
        let (inbox, id) = (schema.outbox.inbox(), Uuid::now_v7());
        let mut first = begin(&schema.outbox).await;
        assert!(inbox.mark(&mut first, "mailer", id).await.unwrap());
        let copy = tokio::spawn({
            let (inbox, outbox) = (inbox.clone(), schema.outbox.clone());
            async move {
                let mut unit = begin(&outbox).await;
                inbox.mark(&mut unit, "mailer", id).await.unwrap()
            }
        });
        until("the copy waits", async || schema.numbers(DB::WAITING).await[0] > 0).await;
        assert!(!copy.is_finished());
        match commits {
            true => first.commit().await.unwrap(),
            false => first.rollback().await.unwrap(),
        }
        assert_eq!(copy.await.unwrap(), !commits);
    }
    schema.drop().await;
}

async fn purge_deletes_only_marks_past_retention<DB: TestDatabase>() {
    let schema = database::Schema::<DB>::new().await;
    let inbox = schema.outbox.inbox();
    // The marks before each are aged by these days.
    for (days, marks) in [(2, 2_500), (6, 3)] {
        let mut unit = begin(&schema.outbox).await;
        for _ in 0..marks {
            assert!(inbox.mark(&mut unit, "mailer", Uuid::now_v7()).await.unwrap());
        }
        unit.commit().await.unwrap();
        let day = DB::DAY;
        schema.run(format!("UPDATE cqrs_inbox SET seen_at = seen_at - {days} * {day}")).await;
    }
    assert_eq!(inbox.purge().await.unwrap(), 2_500);
    assert_eq!(inbox.retention(Duration::from_secs(3_600)).purge().await.unwrap(), 3);
    schema.drop().await;
}

/// Fault 29: copies of each message, and kills of the consumer.
async fn killed_consumers_have_each_effect_once<DB: TestDatabase>() {
    let schema = schema_with_users::<DB>().await;
    let (messages, copies) = (count(500, 10_000), 10);
    let broker = MemoryBroker::new();
    let events: Vec<_> = (0..messages)
        .map(|number| NotificationEvent::new(UserAdded { name: number.to_string() }))
        .collect();
    for _ in 0..copies {
        for event in &events {
            broker.publish_event(event.clone()).await.unwrap();
        }
    }
    let (mut kills, mut duplicates) = (0, 0);
    let end = Instant::now() + Duration::from_secs(600);
    loop {
        let service = service(&broker, &schema.outbox, 8);
        let (health, stop) = (service.health(), service.stop_handle());
        let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
        let kill_at = messages as u64 * copies / 8;
        let handled = || health.subscriptions()[0].counts.handled;
        let kill_until = Instant::now() + Duration::from_secs(2);
        // The last one runs until nothing is left for it.
        let mut quiet = (handled(), Instant::now());
        while kills == 10 && quiet.1.elapsed() < Duration::from_secs(2)
            || kills < 10 && handled() < kill_at && Instant::now() < kill_until
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if handled() != quiet.0 {
                quiet = (handled(), Instant::now());
            }
        }
        stop.stop_now();
        running.await.unwrap().unwrap();
        duplicates += health.subscriptions()[0].counts.duplicates;
        if kills == 10 {
            break;
        }
        kills += 1;
        assert!(Instant::now() < end, "{kills} kills");
    }
    let effects = schema.numbers("SELECT count(*) FROM users").await[0];
    let distinct = schema.numbers("SELECT count(DISTINCT name) FROM users").await[0];
    println!(
        "ledger 29 {}: messages {messages} x {copies}, kills {kills}, effects {effects}, \
         distinct {distinct}, duplicates {duplicates}",
        DB::SERVER,
    );
    assert_eq!((effects, distinct), (messages as i64, messages as i64));
    schema.drop().await;
}

/// Fault 30: no message is acked unhandled while the database is away.
async fn outage_of_the_database_loses_nothing<DB: TestDatabase>() {
    let schema = schema_with_users::<DB>().await;
    let upstream = DB::port();
    let proxy = FaultProxy::start("127.0.0.1:0", format!("localhost:{upstream}")).await.unwrap();
    let outbox = Outbox::new(schema.pool_through(proxy.address()));
    let broker = MemoryBroker::new();
    let messages = count(300, 3_000);
    let service = service(&broker, &outbox, 8);
    let (health, stop) = (service.health(), service.stop_handle());
    let running = tokio::spawn(service.run_until(std::future::pending::<()>()));
    let counts = || health.subscriptions()[0].counts;
    let publish = Arc::new(move |number: usize| UserAdded { name: number.to_string() });
    for number in 0..messages {
        if number == messages / 3 {
            until("some are handled", async || counts().handled > 0).await;
            proxy.refuse(true);
            proxy.cut();
        }
        broker.publish_event(publish(number)).await.unwrap();
    }
    // A commit that was running may have ended as unknown; nothing else is acked during the outage.
    tokio::time::sleep(Duration::from_secs(count(3, 60) as u64)).await;
    let before = counts();
    assert!(before.handled < messages as u64 && before.dead_lettered == 0, "{before:?}");
    proxy.refuse(false);
    let within = Duration::from_secs(60);
    until_within(within, "all are handled", async || counts().handled == messages as u64).await;
    stop.stop();
    running.await.unwrap().unwrap();
    let effects = schema.numbers("SELECT count(*) FROM users").await[0];
    let distinct = schema.numbers("SELECT count(DISTINCT name) FROM users").await[0];
    let after = counts();
    println!(
        "ledger 30 {}: messages {messages}, effects {effects}, distinct {distinct}, handled during the \
         outage {}, failed attempts {}, dead {}",
        DB::SERVER,
        before.handled,
        after.failed_attempts,
        after.dead_lettered
    );
    assert_eq!((effects, distinct), (messages as i64, messages as i64));
    schema.drop().await;
}
