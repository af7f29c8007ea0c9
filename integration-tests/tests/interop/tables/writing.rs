//! Tests of rows that we write, drained by python-cqrs's own producer.

use cqrs_core::message::content_type;
use cqrs_core::{HandlerError, Mediator, NotificationEvent, RequestHandler, Scope, SendError};
use cqrs_macros::Command;
use cqrs_outbox::{PostgresUnitOfWork, PythonOutbox};
use integration_tests::interop::user_joined::UserJoined;
use integration_tests::interop::{UserCreated, events};
use integration_tests::kafka::{delete_topics, read_raw};

use super::{Tables, topic};

/// Emits events and writes a row of its own.
#[derive(Command)]
#[cqrs(crate = "cqrs_core", error = HandlerError)]
struct AddUsers {
    events: Vec<NotificationEvent<UserCreated>>,
    joined: NotificationEvent<UserJoined>,
    fails: bool,
}

struct AddUsersHandler;

impl RequestHandler<AddUsers> for AddUsersHandler {
    async fn handle(&self, command: AddUsers, scope: &mut Scope) -> Result<(), HandlerError> {
        let unit = scope.unit_of_work::<PostgresUnitOfWork>().await?;
        sqlx::query("INSERT INTO users VALUES ('ada')").execute(unit.connection()).await?;
        command.events.into_iter().for_each(|event| scope.emit(event));
        scope.emit(command.joined);
        if command.fails { Err(HandlerError::permanent("not today")) } else { Ok(()) }
    }
}

fn joined(topic: &str) -> NotificationEvent<UserJoined> {
    let payload = UserJoined { user_id: "1".to_owned(), meeting_id: "2".to_owned() };
    NotificationEvent::new(payload).with_topic(topic.to_owned())
}

async fn send(outbox: PythonOutbox, command: AddUsers) -> Result<(), SendError<(), HandlerError>> {
    let mediator = Mediator::builder().handle::<AddUsers, _>(AddUsersHandler).outbox(outbox);
    mediator.build().unwrap().send(command).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_producer_drains_our_rows() {
    for (style, compressed) in [("dataclass", false), ("pydantic", true)] {
        let (tables, topic) = (Tables::new().await, topic().await);
        tables.execute("CREATE TABLE users (name text)").await;
        let outbox = match compressed {
            true => tables.outbox().with_zlib(),
            false => tables.outbox(),
        };
        let (events, joined) = (events(&topic), joined(&topic));
        let command = |fails| AddUsers { events: events.clone(), joined: joined.clone(), fails };
        let error = send(outbox.clone(), command(true)).await.unwrap_err();
        assert!(matches!(error, SendError::Handler(_)), "{error:?}");
        assert!(tables.rows().await.is_empty());
        send(outbox, command(false)).await.unwrap();
        assert_eq!(tables.schema.column::<i64>("SELECT count(*) FROM users").await, [1]);

        let mut messages: Vec<_> = events.iter().map(|event| event.to_message().unwrap()).collect();
        messages.push(joined.to_message().unwrap());
        let rows = tables.rows().await;
        assert_eq!(rows.len(), messages.len());
        for (row, message) in rows.iter().zip(&messages) {
            assert!(row.same_id);
            assert_eq!((&*row.status, row.attempts), ("NEW", 0));
            assert_eq!((&*row.name, &*row.topic), (&*message.name, &*message.topic));
            assert_eq!(row.event_id, message.id.to_string());
        }
        // The time of the event, in UTC and without an offset.
        assert_eq!(rows[0].created_at, "2024-01-02T03:04:05.678901");

        assert_eq!(tables.produce(style, compressed, 2).await, [messages.len(), 0]);
        let statuses = tables.rows().await;
        assert!(statuses.iter().all(|row| row.status == "PRODUCED" && row.attempts == 0));
        let records = read_raw(&topic).await;
        assert_eq!(records.len(), messages.len());
        for ((_, record), message) in records.iter().zip(&messages) {
            assert_eq!(record.body.as_deref(), Some(&message.body[..]));
            let is_json = message.content_type.as_deref().is_some_and(content_type::is_json);
            assert_eq!(record.headers.len(), if is_json { 0 } else { 2 });
        }
        tables.schema.drop().await;
        delete_topics(&topic).await;
    }
}

#[tokio::test]
async fn added_event_follows_the_callers_transaction() {
    let tables = Tables::new().await;
    let outbox = tables.outbox().with_schema(&tables.schema.name).with_table("outbox");
    let event = &events("users")[0];
    for commits in [false, true] {
        let mut tx = tables.schema.pool.begin().await.unwrap();
        outbox.add(&mut tx, event.clone()).await.unwrap();
        match commits {
            true => tx.commit().await.unwrap(),
            false => tx.rollback().await.unwrap(),
        }
    }
    assert_eq!(tables.rows().await.len(), 1);
    // The package has one row for an id and a name.
    let mut tx = tables.schema.pool.begin().await.unwrap();
    let error = outbox.add(&mut tx, event.clone()).await.unwrap_err();
    assert!(!error.is_retryable(), "{error}");
    drop(tx);
    tables.schema.drop().await;
}
