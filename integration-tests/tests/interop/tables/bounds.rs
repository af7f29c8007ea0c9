//! Tests of what bounds the relay: its lease, its lock, the time of a stop, and the memory and time of a batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cqrs_core::broker::{BoxFuture, BrokerState, Receipt, ShutdownReport};
use cqrs_core::{MemoryBroker, Message, MessageBroker, PublishError, PublishErrorKind};
use cqrs_outbox::PythonRelay;
use integration_tests::consuming::fixture::until;
use integration_tests::log;
use tokio::sync::Semaphore;

use super::failing::is_locked;
use super::{Running, Tables, payloads};

/// The shortest one.
const LEASE: Duration = Duration::from_secs(3);

/// A broker whose window is full until the test makes room for messages.
#[derive(Debug, Clone)]
struct Gated(MemoryBroker, Arc<Semaphore>);

impl Gated {
    fn new() -> Self {
        Self(MemoryBroker::new(), Arc::new(Semaphore::new(0)))
    }
}

impl MessageBroker for Gated {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            self.1.acquire().await.unwrap().forget();
            self.0.enqueue(message).await
        })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        match self.1.try_acquire() {
            Ok(room) => {
                room.forget();
                self.0.try_enqueue(message)
            }
            Err(_) => Err(PublishError::new(PublishErrorKind::Full, message, "no room")),
        }
    }

    fn state(&self) -> BrokerState {
        self.0.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.shutdown(deadline)
    }
}

impl Tables {
    /// Statements that wait for a lock of this test's table.
    async fn waiting_statements(&self) -> i64 {
        let sql =
            "SELECT count(*) FROM pg_locks WHERE relation = 'outbox'::regclass AND NOT granted";
        self.schema.column::<i64>(sql).await[0]
    }
}

/// The relay asks the database in each third of its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_that_lost_its_lock_starts_nothing_more() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(20), false).await;
    let broker = Gated::new();
    let first = PythonRelay::builder(&tables.outbox(), broker.clone()).lease(LEASE);
    let first = Running::start(first);
    until("the relay has the lock", async || is_locked(&tables).await).await;
    tables
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' \
             AND classid = 6517106 AND objid = 'outbox'::regclass::oid AND granted",
        )
        .await;
    let other = Running::start(PythonRelay::builder(&tables.outbox(), broker.0.clone()));
    tables.until_produced(20).await;
    assert_eq!(other.stop().await.published, 20);
    tokio::time::sleep(LEASE).await;
    broker.1.add_permits(1_000);
    tables.add("users", "dataclass", payloads(1), false).await;
    tables.until_produced(21).await;
    assert_eq!(first.stop().await.published, 1);
    assert_eq!(broker.0.messages("users").len(), 21);
    tables.schema.drop().await;
}

/// Each attempt to set the statuses waits for a lock, and is ended by the server, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_of_given_up_attempts_end() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(1), false).await;
    let mut locking = tables.schema.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE outbox IN SHARE MODE").execute(&mut *locking).await.unwrap();
    let relay = PythonRelay::builder(&tables.outbox(), MemoryBroker::new()).lease(LEASE);
    let relay = Running::start(relay);
    until("a statement waits", async || tables.waiting_statements().await > 0).await;
    let (since, mut most) = (Instant::now(), 0);
    while since.elapsed() < 4 * LEASE {
        most = tables.waiting_statements().await.max(most);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((1..=2).contains(&most), "{most} statements wait");
    locking.rollback().await.unwrap();
    tables.until_produced(1).await;
    assert_eq!(relay.stop().await.published, 1);
    tables.schema.drop().await;
}

/// As a read of a large table without the index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_read_names_the_index() {
    log::show_warnings();
    let tables = Tables::new().await;
    let mut locking = tables.schema.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE").execute(&mut *locking).await.unwrap();
    let relay = PythonRelay::builder(&tables.outbox(), MemoryBroker::new()).lease(LEASE);
    let relay = Running::start(relay);
    let hint = "which needs an index on (event_status, id)";
    until("the log names the index", async || log::captured().contains(hint)).await;
    locking.rollback().await.unwrap();
    relay.stop().await;
    tables.schema.drop().await;
}

/// A lease is 30 s by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_waits_no_lease_for_the_database() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(1), false).await;
    let mut locking = tables.schema.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE outbox IN SHARE MODE").execute(&mut *locking).await.unwrap();
    let second = Duration::from_secs(1);
    let relay = PythonRelay::builder(&tables.outbox(), MemoryBroker::new()).drain(second);
    let relay = Running::start(relay);
    until("a statement waits", async || tables.waiting_statements().await > 0).await;
    let since = Instant::now();
    let report = relay.stop().await;
    assert!(since.elapsed() < 10 * second, "{:?}", since.elapsed());
    assert_eq!((report.published, report.unsettled), (1, 1));
    locking.rollback().await.unwrap();
    tables.schema.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_without_room_is_unsettled_at_a_stop() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(3), false).await;
    let relay = PythonRelay::builder(&tables.outbox(), Gated::new());
    let relay = Running::start(relay.drain(Duration::from_millis(100)));
    until("the relay has the lock", async || is_locked(&tables).await).await;
    // It has read the rows by then, as it needs no statement more.
    until("the rows are locked", async || {
        let free = "SELECT id FROM outbox FOR UPDATE SKIP LOCKED";
        tables.schema.column::<i64>(free).await.is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(relay.stop().await.unsettled, 1);
    tables.schema.drop().await;
}

/// Those that are confirmed are settled, and the others are read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_ends_after_one_lease() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(20), false).await;
    let broker = Gated::new();
    let relay = PythonRelay::builder(&tables.outbox(), broker.clone()).lease(LEASE);
    let relay = Running::start(relay);
    broker.1.add_permits(1);
    until("one is produced", async || tables.count("PRODUCED", 0).await == 1).await;
    assert_eq!(tables.count("NEW", 0).await, 19);
    broker.1.add_permits(1_000);
    tables.until_produced(20).await;
    assert_eq!(relay.stop().await.published, 20);
    tables.schema.drop().await;
}

/// The bound of a batch is 16 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_of_large_rows_is_bounded() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(5), false).await;
    tables.execute("UPDATE outbox SET payload = decode(repeat('7b', 8388608), 'hex')").await;
    let mut locking = tables.schema.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE outbox IN SHARE MODE").execute(&mut *locking).await.unwrap();
    let broker = MemoryBroker::new();
    let relay = Running::start(PythonRelay::builder(&tables.outbox(), broker.clone()));
    until("the batch is published", async || tables.waiting_statements().await > 0).await;
    assert_eq!(broker.messages("users").len(), 2);
    locking.rollback().await.unwrap();
    tables.until_produced(5).await;
    assert_eq!(relay.stop().await.published, 5);
    tables.schema.drop().await;
}

/// A broker without a destination for the topic `late`, until the test makes one.
#[derive(Debug, Clone)]
struct Unrouted(MemoryBroker, Arc<AtomicBool>, Arc<AtomicUsize>);

impl Unrouted {
    fn routed(&self, message: Message) -> Result<Message, PublishError> {
        if &*message.topic != "late" || self.1.load(Ordering::Relaxed) {
            return Ok(message);
        }
        self.2.fetch_add(1, Ordering::Relaxed);
        Err(PublishError::new(PublishErrorKind::Unroutable, message, "no queue"))
    }
}

impl MessageBroker for Unrouted {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move { self.0.enqueue(self.routed(message)?).await })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.0.try_enqueue(self.routed(message)?)
    }

    fn state(&self) -> BrokerState {
        self.0.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.0.shutdown(deadline)
    }
}

/// The rows of the other topics go on, although the batch is smaller than the rows that wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unroutable_topic_costs_no_attempt() {
    log::show_warnings();
    let tables = Tables::new().await;
    tables.add("late", "dataclass", payloads(10), false).await;
    tables.add("users", "dataclass", payloads(10), false).await;
    let broker = Unrouted(MemoryBroker::new(), Arc::default(), Arc::default());
    let relay = PythonRelay::builder(&tables.outbox(), broker.clone()).batch(4);
    let relay = Running::start(relay);
    tables.until_produced(10).await;
    until("it is tried often", async || broker.2.load(Ordering::Relaxed) >= 6).await;
    assert_eq!(tables.count("NEW", 0).await, 10);
    let logged = log::captured();
    assert_eq!(logged.lines().filter(|line| line.contains("topic=late")).count(), 1, "{logged}");
    broker.1.store(true, Ordering::Relaxed);
    tables.until_produced(20).await;
    assert_eq!(relay.stop().await.published, 20);
    tables.schema.drop().await;
}

/// Times that overflow mean forever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_times_are_allowed() {
    let tables = Tables::new().await;
    tables.add("users", "dataclass", payloads(2), false).await;
    // One row fails.
    tables.execute("UPDATE outbox SET payload = 'x' WHERE id = 1").await;
    let compressed = tables.add("users", "dataclass", payloads(1), true).await;
    assert_eq!(compressed.len(), 1);
    let (outbox, endless) = (tables.outbox().with_zlib(), Duration::MAX);
    let relay = PythonRelay::builder(&outbox, MemoryBroker::new()).poll(endless, endless);
    let relay = relay.backoff(endless, endless).lease(endless).drain(endless).build().unwrap();
    let relay = Running { handle: relay.handle(), task: tokio::spawn(relay.run()) };
    until("one is produced", async || tables.count("PRODUCED", 0).await == 1).await;
    assert_eq!(tables.count("NOT_PRODUCED", 1).await, 2);
    assert_eq!(relay.stop().await.published, 1);
    tables.schema.drop().await;
}
