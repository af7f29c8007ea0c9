//! [`TesterEvents`]: the events of one type on a tester's broker, read by a deserializer.

use std::any::type_name;
use std::borrow::Cow;
use std::fmt;

use cqrs_core::Notification;
use cqrs_core::codec::Deserializer;
use cqrs_core::consume::Incoming;

use super::ServiceTester;
use super::journal::{JournalState, Outcome};
use super::outcome::{Retried, TesterError, short_name};

/// The events of type `P` on a tester's broker, read by a deserializer; made by
/// [`ServiceTester::decode`].
#[must_use = "it only reads what the tester has recorded"]
pub struct TesterEvents<'t, P: Notification> {
    tester: &'t ServiceTester,
    deserializer: Box<dyn Deserializer<P>>,
    decoder: &'static str,
}

impl<'t, P: Notification> TesterEvents<'t, P> {
    pub(super) fn new<D: Deserializer<P>>(tester: &'t ServiceTester, deserializer: D) -> Self {
        Self { tester, deserializer: Box::new(deserializer), decoder: short_name::<D>() }
    }

    /// As [`ServiceTester::handled`].
    ///
    /// # Errors
    /// When there are fewer in time: all that did happen.
    ///
    /// # Cancel safety
    /// A dropped call changes nothing.
    pub async fn handled(&self, n: usize) -> Result<Vec<P>, TesterError> {
        let handled = |event, what: &Outcome| matches!(what, Outcome::Handled).then_some(event);
        self.wait(n, "handled", handled).await
    }

    /// As [`ServiceTester::retried`].
    ///
    /// # Errors
    /// As [`handled`](Self::handled).
    ///
    /// # Cancel safety
    /// A dropped call changes nothing.
    pub async fn retried(&self, n: usize) -> Result<Vec<Retried<P>>, TesterError> {
        let retried = |event, what: &Outcome| match what {
            Outcome::Retried { delay, attempts } => {
                Some(Retried { event, delay: *delay, attempts: *attempts })
            }
            _ => None,
        };
        self.wait(n, "retried", retried).await
    }

    /// As [`ServiceTester::published`].
    ///
    /// # Panics
    /// When a message has the name of `P` and cannot be decoded as one.
    pub fn published(&self) -> Vec<P> {
        let messages = self.tester.published_messages();
        let incoming = messages.iter().map(Incoming::from);
        let named = incoming.filter(|message| self.is_named(message));
        let event = |message| match self.deserializer.deserialize(&message) {
            Ok(event) => event.payload,
            Err(error) => panic!("a {} was published that is none: {error}", short_name::<P>()),
        };
        named.map(event).collect()
    }

    fn is_named(&self, message: &Incoming) -> bool {
        let in_frame = message.name.as_deref().map(Cow::Borrowed);
        match in_frame.or_else(|| self.deserializer.event_name(message)) {
            Some(name) => name == P::NAME,
            // Some formats name an event by its type.
            None => {
                let event = self.deserializer.deserialize(message);
                event.is_ok_and(|event| event.event_name == P::NAME)
            }
        }
    }

    async fn wait<T>(
        &self,
        n: usize,
        verb: &str,
        pick: impl Fn(P, &Outcome) -> Option<T>,
    ) -> Result<Vec<T>, TesterError> {
        let look = |state: &JournalState| {
            let entries =
                state.entries.iter().map(|entry| (&entry.subject.message, &entry.outcome));
            let named = entries.filter(|(message, _)| self.is_named(message));
            let picked = named.filter_map(|(message, outcome)| {
                pick(self.deserializer.deserialize(message).ok()?.payload, outcome)
            });
            picked.collect::<Vec<_>>()
        };
        self.tester.at_least(n, look).await.map_err(|found| {
            let TesterError(text) = self.tester.missing(found, n, short_name::<P>(), verb);
            TesterError(text + &self.undecodable())
        })
    }

    /// Names events that would have counted if their bodies could be decoded.
    fn undecodable(&self) -> String {
        let state = self.tester.broker.journal.lock();
        let messages = state.entries.iter().map(|entry| &entry.subject.message);
        let mut named = messages.filter(|message| self.is_named(message));
        match named.find_map(|message| self.deserializer.deserialize(message).err()) {
            Some(error) => {
                let (name, decoder) = (short_name::<P>(), self.decoder);
                format!("  some are named {:?} and are no {name} to {decoder}: {error}\n", P::NAME)
            }
            None => String::new(),
        }
    }
}

impl<P: Notification> fmt::Debug for TesterEvents<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TesterEvents<{}>", type_name::<P>())
    }
}
