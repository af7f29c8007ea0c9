//! [`Flawed`]: the in-memory broker with one flaw in consuming. Tombstones, outages and the counting of
//! crashes, which that broker lacks, are simulated here, so that they can be flawed as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Intake, Receipt, ShutdownReport, Window};
use cqrs_core::consume::{DeadLetterTarget, Source, SubscribeError, SubscribeRequest, TopicSet};
use cqrs_core::memory::{MemoryRetry, MemorySubscription};
use cqrs_core::{MemoryBroker, Message, MessageBroker, PublishError, StartAt, Subscribe};
use tokio::sync::watch;

use super::Flaw;
use super::source::FlawedSource;

/// A message with this header is received as a tombstone.
pub(super) const TOMBSTONE: &str = "tombstone";

impl Flaw {
    /// Set if retries are scheduled copies.
    pub(super) fn is_scheduled(self) -> bool {
        [
            Self::NoneScheduled,
            Self::RetryForgetsAttempts,
            Self::RetryTooEarly,
            Self::RetryNeverComes,
            Self::RetryHolds,
            Self::RetryLeavesHeaders,
        ]
        .contains(&self)
    }
}

/// The simulated connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) cuts: u32,
    pub(super) is_down: bool,
}

#[derive(Debug)]
pub(super) struct Flawed {
    pub(super) sound: MemoryBroker,
    pub(super) flaw: Flaw,
    pub(super) connection: watch::Receiver<Connection>,
    pub(super) shared: Arc<SourceState>,
    /// Makes receipts of messages that are sent later.
    intake: Intake,
}

/// The state that the sources of a broker share.
#[derive(Debug, Default)]
pub(super) struct SourceState {
    /// Unfinished starts by group, topic and offset.
    pub(super) started: Mutex<HashMap<(String, String, i64), u32>>,
    /// Open members of each group.
    pub(super) members: Mutex<HashMap<String, usize>>,
    published: Mutex<usize>,
}

impl Flawed {
    pub(super) fn new(
        sound: MemoryBroker,
        flaw: Flaw,
        connection: watch::Receiver<Connection>,
    ) -> Self {
        let intake = Intake::new(Window::new(100_000, 1 << 30), Duration::from_secs(60));
        Self { sound, flaw, connection, shared: Arc::default(), intake }
    }

    /// Sends some messages a little after the messages behind them.
    fn late(&self, message: &Message) -> Option<Result<Receipt, PublishError>> {
        let mut published = self.shared.published.lock().unwrap();
        *published += 1;
        if self.flaw != Flaw::ReordersKey || *published % 10 != 5 {
            return None;
        }
        let (pending, receipt) = self.intake.try_admit(message.clone()).unwrap();
        let (sound, message) = (self.sound.clone(), message.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            pending.confirm(sound.enqueue(message).await.unwrap().await.unwrap());
        });
        Some(Ok(receipt))
    }

    fn change(&self, request: &mut SubscribeRequest) {
        let retry = match self.flaw.is_scheduled() {
            true => MemoryRetry::Scheduled,
            false => MemoryRetry::Hold,
        };
        request.options.insert(MemorySubscription::default().with_retry(retry));
        let TopicSet::Named(topics) = &mut request.topics else { return };
        let first = topics[0].to_string();
        match self.flaw {
            Flaw::IgnoresCap => request.max_unsettled = Some(10_000),
            Flaw::IgnoresEarliest => request.start = StartAt::Latest,
            Flaw::IgnoresLatest => request.start = StartAt::Earliest,
            Flaw::ForgetsUnusedGroup
                if request.start == StartAt::Latest
                    && self.shared.members.lock().unwrap().contains_key(&*request.group) =>
            {
                // Under another name it is a new group.
                request.group = format!("{}-again", request.group).into();
            }
            Flaw::FirstTopicOnly => topics.truncate(1),
            Flaw::IgnoresDeadLetterName => request.dead_letter = DeadLetterTarget::Default,
            Flaw::GroupsShare | Flaw::MembersCopy => {
                // Under another name the dead letters go where they should.
                let name = request.dead_letter_topic(&first);
                request.dead_letter = name
                    .map_or(DeadLetterTarget::Discard, |name| DeadLetterTarget::Named(name.into()));
                request.group = match self.flaw {
                    Flaw::GroupsShare => "everybody".into(),
                    _ => match self.shared.members.lock().unwrap().get(&*request.group) {
                        None | Some(0) => request.group.clone(),
                        Some(others) => format!("{}-{others}", request.group).into(),
                    },
                };
            }
            Flaw::RedeliversAcked if self.sound.messages(&first).len() >= 20 => {
                self.sound.faults().redeliver(&first, &request.group, 1);
            }
            _ => {}
        }
    }
}

impl MessageBroker for Flawed {
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
        match self.late(&message) {
            Some(late) => Box::pin(std::future::ready(late)),
            None => self.sound.enqueue(message),
        }
    }

    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
        self.sound.try_enqueue(message)
    }

    fn state(&self) -> BrokerState {
        self.sound.state()
    }

    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
        self.sound.shutdown(deadline)
    }
}

impl Subscribe for Flawed {
    fn check(&self, requests: &[SubscribeRequest]) -> Vec<SubscribeError> {
        match self.flaw {
            Flaw::ChecksNothing => Vec::new(),
            _ => self.sound.check(requests),
        }
    }

    fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Source>, SubscribeError>> {
        Box::pin(async move {
            let mut inner = request.clone();
            self.change(&mut inner);
            let source = FlawedSource::open(self, inner, &request);
            Ok(Box::new(source) as Box<dyn Source>)
        })
    }
}
