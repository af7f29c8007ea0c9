//! [`Undelivered`]: the events of committed work that the broker did not confirm; returned by both mediators.

use std::error::Error;
use std::fmt;

use super::publish::publish_each_confirmed;
use crate::broker::{BoxFuture, MessageBroker, PublishError};
use crate::consume::support::error_chain;
use crate::message::Message;

/// Events that the broker did not confirm, after the work that caused them was committed.
///
/// Do not send the request again: it was done. [`publish_again`](Self::publish_again) publishes the events
/// again; [`events`](Self::events) has their messages, to be stored elsewhere. `Debug` does not show the
/// response, which may be a secret.
#[non_exhaustive]
pub struct Undelivered<T> {
    /// The handler's response.
    pub response: T,
    /// The errors of the unconfirmed events, in order of emission; never empty. Each has the message.
    pub events: Vec<PublishError>,
}

impl<T> Undelivered<T> {
    pub(crate) fn new(response: T, events: Vec<PublishError>) -> Self {
        Self { response, events }
    }

    /// Publishes the events again, with the same ids, to a broker or to a mediator's broker. Each waits for the
    /// confirm of the earlier one of its topic and key. Returns the response once all of them are confirmed.
    ///
    /// ```
    /// use cqrs_core::{MessageBroker, SendError};
    ///
    /// # async fn f<E>(sent: Result<u64, SendError<u64, E>>, broker: impl MessageBroker) -> Result<u64, SendError<u64, E>> {
    /// let sent = match sent {
    ///     Err(SendError::Undelivered(undelivered)) => {
    ///         undelivered.publish_again(&broker).await.map_err(SendError::from)
    ///     }
    ///     sent => sent,
    /// };
    /// # sent
    /// # }
    /// ```
    ///
    /// # Errors
    /// The events that are still unconfirmed. An event with an earlier one of its topic and key among them was
    /// not sent, so that they keep their order; only one that can never be published (too large, invalid) keeps
    /// none from being sent.
    ///
    /// # Cancel safety
    /// Dropped, the events that are not confirmed yet are lost with it: they may or may not be stored.
    pub async fn publish_again(self, to: &(impl PublishTarget + ?Sized)) -> Result<T, Self> {
        let Self { response, events } = self;
        let messages = events.into_iter().map(PublishError::into_message).collect();
        let events = to.publish_in_order(messages).await;
        match events.is_empty() {
            true => Ok(response),
            false => Err(Self { response, events }),
        }
    }

    pub(crate) fn log(&self) {
        self.events.iter().for_each(log_undelivered);
    }
}

/// Logs one event of committed work that is not published.
pub(super) fn log_undelivered(error: &PublishError) {
    let message = error.message();
    tracing::error!(
        event = &*message.name,
        topic = &*message.topic,
        id = %message.id,
        kind = ?error.kind(),
        error = error_chain(error),
        "an event of committed work is not published"
    );
}

/// The place to which [`Undelivered::publish_again`] publishes: a [`MessageBroker`], or a mediator that has one.
pub trait PublishTarget: sealed::Sealed {}

impl<T: sealed::Sealed + ?Sized> PublishTarget for T {}

pub(crate) mod sealed {
    use super::{BoxFuture, Message, PublishError};

    pub trait Sealed: Send + Sync {
        /// Returns the errors of unconfirmed messages, in order.
        #[doc(hidden)]
        fn publish_in_order(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<PublishError>>;
    }
}

impl<B: MessageBroker + ?Sized> sealed::Sealed for B {
    fn publish_in_order(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<PublishError>> {
        Box::pin(publish_each_confirmed(self, messages))
    }
}

impl<T> fmt::Display for Undelivered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "done and committed, but {} of its events could not be published: publish them again \
             (Undelivered::publish_again), and do not send the request again",
            self.events.len()
        )?;
        match self.events.first() {
            Some(first) => write!(f, "; the first is {first}"),
            None => Ok(()),
        }
    }
}

crate::debug_fields!(Undelivered<T> { events });

impl<T> Error for Undelivered<T> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.events.first().map(|first| first as _)
    }
}
