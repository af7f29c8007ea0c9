//! Handlers, stores and brokers that the tests share.
#![allow(dead_code, unreachable_pub)] // each test file uses its own part

use std::error::Error;
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Confirmation, Intake, Receipt, ShutdownReport};
use cqrs_core::scope::{CommitError, OutboxUnit, TransactionEnded, UnitOfWorkFactory};
use cqrs_core::{Message, MessageBroker, PublishError, PublishErrorKind, UnitOfWork};

use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, span};

type BoxError = Box<dyn Error + Send + Sync>;

/// The recorded entries, in order.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn add(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|known| *known == line).count()
    }
}

/// Confirms and keeps messages, except those of the topic `refused`.
#[derive(Debug, Clone, Default)]
pub struct RecordingBroker {
    pub messages: Arc<Mutex<Vec<Message>>>,
    pub log: Log,
    intake: Intake,
}

impl RecordingBroker {
    pub fn with_log(log: &Log) -> Self {
        Self { log: log.clone(), ..Self::default() }
    }

    pub fn names(&self) -> Vec<String> {
        self.messages.lock().unwrap().iter().map(|message| message.name.to_string()).collect()
    }
}

impl MessageBroker for RecordingBroker {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        Box::pin(async move {
            steps(1).await;
            self.try_enqueue(message)
        })
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        let (pending, receipt) = self.intake.try_admit(message)?;
        if &*pending.message().topic == "refused" {
            pending.fail(PublishErrorKind::Refused, "this broker refuses the topic", None);
        } else {
            self.log.add(format!("publish {}", pending.message().name));
            self.messages.lock().unwrap().push(pending.message().clone());
            pending.confirm(Confirmation::default());
        }
        Ok(receipt)
    }

    fn state(&self) -> BrokerState {
        BrokerState::Ready
    }

    fn shutdown(&self, _deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.intake.close();
        Box::pin(async { ShutdownReport::default() })
    }
}

/// The fault of the transactional fake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    Begin,
    Put,
    PanicInPut,
    /// The transaction has ended when messages are put, or at the commit.
    Ended,
    Commit,
    /// The connection is lost in the commit, so that its outcome is unknown.
    LostInCommit,
    PanicInCommit,
    Rollback,
}

/// A transactional store: writes are visible after the commit and not before.
#[derive(Debug, Clone, Default)]
pub struct Store {
    pub log: Log,
    pub fault: Fault,
    visible: Arc<Mutex<Vec<String>>>,
}

pub struct Transaction {
    store: Store,
    writes: Vec<String>,
    finished: bool,
}

impl Store {
    pub fn new(log: &Log, fault: Fault) -> Self {
        Self { log: log.clone(), fault, ..Self::default() }
    }

    pub fn visible(&self) -> Vec<String> {
        self.visible.lock().unwrap().clone()
    }
}

impl Transaction {
    pub fn write(&mut self, what: impl Into<String>) {
        self.writes.push(what.into());
    }
}

impl UnitOfWorkFactory for Store {
    type Unit = Transaction;

    async fn begin(&self) -> Result<Transaction, BoxError> {
        steps(2).await;
        if self.fault == Fault::Begin {
            return Err("no connection".into());
        }
        self.log.add("begin");
        Ok(Transaction { store: self.clone(), writes: Vec::new(), finished: false })
    }
}

impl UnitOfWork for Transaction {
    async fn commit(mut self) -> Result<(), CommitError> {
        steps(2).await;
        self.finished = true;
        match self.store.fault {
            Fault::Commit => {
                self.store.log.add("commit failed");
                return Err(CommitError::failed("serialization failure"));
            }
            Fault::Ended => return Err(TransactionEnded::new("DDL").into()),
            Fault::LostInCommit => {
                self.store.log.add("commit failed");
                return Err(std::io::Error::other("connection lost").into());
            }
            Fault::PanicInCommit => {
                self.store.log.add("commit failed");
                panic!("commit blew up");
            }
            _ => {}
        }
        self.store.visible.lock().unwrap().append(&mut self.writes);
        self.store.log.add("commit");
        Ok(())
    }

    async fn rollback(mut self) -> Result<(), BoxError> {
        steps(2).await;
        self.finished = true;
        self.store.log.add("rollback");
        match self.store.fault {
            Fault::Rollback => Err("connection lost".into()),
            _ => Ok(()),
        }
    }
}

impl OutboxUnit for Transaction {
    /// Stored messages are writes, too.
    async fn put(&mut self, messages: &[Message]) -> Result<(), BoxError> {
        steps(2).await;
        match self.store.fault {
            Fault::Put => return Err("no such table: outbox".into()),
            Fault::PanicInPut => panic!("put blew up"),
            Fault::Ended => return Err(TransactionEnded::new("DDL").into()),
            _ => {}
        }
        for message in messages {
            self.store.log.add(format!("put {}", message.name));
            self.write(format!("{} to {}", message.name, message.topic));
        }
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.finished {
            self.store.log.add("dropped");
        }
    }
}

/// Pending `count` times: `count` points at which it can be cancelled.
pub async fn steps(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// Polls `future` at most `polls` times and drops it; `Some` if it completed.
pub async fn poll_times<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        let polled = PollOnce(future.as_mut()).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        // Lets the tasks that the future waits for make progress.
        tokio::task::yield_now().await;
    }
    None
}

struct PollOnce<'a, F>(Pin<&'a mut F>);

impl<F: Future> Future for PollOnce<'_, F> {
    type Output = Poll<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(self.0.as_mut().poll(cx))
    }
}

/// Keeps the lines of INFO and above.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// Records the log lines of this thread until the guard is dropped.
    ///
    /// With a single dispatcher, tracing asks only the thread that reaches a callsite first whether it is of
    /// interest: another test's thread would switch it off for this one. It asks all of two.
    pub fn record(&self) -> (DefaultGuard, Dispatch) {
        let second = Dispatch::new(self.clone());
        (tracing::subscriber::set_default(self.clone()), second)
    }

    pub fn with(&self, part: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines.iter().filter(|line| line.contains(part)).cloned().collect()
    }
}

struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(format!("{} ", event.metadata().level()));
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
}
