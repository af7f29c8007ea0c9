//! Brokers that consume right in all but one thing.
//!
//! Around the in-memory broker, which lacks some of what others can: tombstones, outages and the counting
//! of crashes are played here, so that these can be wrong as well.

mod settle;
mod source;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cqrs_core::broker::{BoxFuture, BrokerState, Intake, Receipt, ShutdownReport, Window};
use cqrs_core::consume::{DeadLetterTarget, Source, SubscribeError, SubscribeRequest, TopicSet};
use cqrs_core::memory::{MemoryRetry, MemorySubscription};
use cqrs_core::{MemoryBroker, Message, MessageBroker, PublishError, StartAt, Subscribe};
use tokio::sync::watch;

use source::FlawedSource;

/// A message with this header is received as a tombstone.
pub(crate) const TOMBSTONE: &str = "tombstone";

macro_rules! flaws {
    ($($flaw:ident)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Flaw { $($flaw),* }

        impl Flaw {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$flaw),*];
        }
    };
}

flaws! {
    None NoneScheduled AcksOnReceive LosesDropped LosesOnCrash RedeliversAcked ReordersKey IgnoresCap
    ForgetsHeaders ForgetsKey HidesRedelivery SkipsEmpty TombstoneIsEmpty IgnoresEarliest IgnoresLatest ForgetsUnusedGroup
    ChecksNothing FirstTopicOnly GroupsShare MembersCopy BeginLies StopKeepsDelivering CloseHangs
    NeverTellsOfOutage StaysDisconnected LosesOnCut DeadLetterNotWritten DeadLetterBodyChanged
    DeadLetterKeyLost DeadLetterHeadersLost DeadLetterUntold DeadLetterAttemptsLost IgnoresDeadLetterName
    HoldForgetsAttempts RetryForgetsAttempts RetryTooEarly RetryNeverComes RetryHolds
    RetryShowsItself ForgetsCrashes ForgetsFailedAttempts ForgetsLastFailure
}

impl Flaw {
    /// Whether messages that wait for a retry wait aside.
    pub(crate) fn is_scheduled(self) -> bool {
        [
            Self::NoneScheduled,
            Self::RetryForgetsAttempts,
            Self::RetryTooEarly,
            Self::RetryNeverComes,
            Self::RetryHolds,
            Self::RetryShowsItself,
        ]
        .contains(&self)
    }
}

/// The connection that is played.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) cuts: u32,
    pub(crate) away: bool,
}

#[derive(Debug)]
pub(crate) struct Flawed {
    sound: MemoryBroker,
    flaw: Flaw,
    link: watch::Receiver<Link>,
    shared: Arc<Shared>,
    /// Makes receipts of messages that are sent later.
    intake: Intake,
}

/// What the sources of a broker share.
#[derive(Debug, Default)]
struct Shared {
    /// Starts that came to no end, by group, topic and offset.
    started: Mutex<HashMap<(String, String, i64), u32>>,
    /// Members of each group that are there.
    members: Mutex<HashMap<String, usize>>,
    published: Mutex<usize>,
}

impl Flawed {
    pub(crate) fn new(sound: MemoryBroker, flaw: Flaw, link: watch::Receiver<Link>) -> Self {
        let intake = Intake::new(Window::new(100_000, 1 << 30), Duration::from_secs(60));
        Self { sound, flaw, link, shared: Arc::default(), intake }
    }

    /// Some messages are sent a little after what comes behind them.
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
