//! The publishing contract of a message broker, which mediators call and broker crates implement.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::BoxFuture;
use super::error::PublishError;
use super::event_error::PublishEventError;
use super::receipt::{Confirmation, Receipt};
use crate::event::{Notification, NotificationEvent};
use crate::message::Message;

/// Publishes messages. The one contract between the mediators and every broker.
///
/// # What an implementation promises
/// * **Durability.** A [`Receipt`] resolves to `Ok` only after the broker confirmed the message (Kafka:
///   delivery report with `acks=all`; RabbitMQ: publisher confirm). Every other outcome is an error with
///   the known facts and the message.
/// * **Order.** Messages of one topic and key arrive in the order in which `enqueue` resolved, whichever
///   tasks called it, and even if the receipts are dropped.
/// * **Bounds.** At most a window of messages and bytes is in flight. A full window makes `enqueue`
///   wait and `try_enqueue` fail with [`Full`](super::PublishErrorKind::Full).
/// * **Deadline.** `enqueue` and its receipt together end within one deadline, whatever the broker does.
/// * **Recovery.** A lost connection is made again forever, with backoff; unconfirmed messages are sent
///   again with the same id, in order, before anything newer of their key, until their deadline. So a
///   message can arrive twice (same id), and is never lost silently.
/// * **Cancel safety.** Dropping the future of `enqueue` before it resolves sends nothing. Dropping a
///   receipt cancels nothing: the message keeps its slot in the window until its confirm.
///
/// The conformance suite of `cqrs-testkit` checks an implementation against these.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message broker: give a `KafkaMessageBroker`, an `AmqpMessageBroker`, a \
               `MemoryBroker`, or one in an `Arc`",
    label = "not a message broker"
)]
pub trait MessageBroker: fmt::Debug + Send + Sync + 'static {
    /// Takes `message` into the window, waiting for a slot; its order is fixed once this resolves.
    ///
    /// # Errors
    /// `NotSent` if no slot became free before the deadline, `TooLarge`, `Invalid`, or `Closed` after
    /// [`shutdown`](Self::shutdown) began.
    fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>>;

    /// Takes `message` into the window, without waiting.
    ///
    /// # Errors
    /// `Full` if there is no free slot, else as [`enqueue`](Self::enqueue).
    fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError>;

    /// The state of the broker value's connection. Cheap; meant for readiness checks.
    fn state(&self) -> BrokerState;

    /// Refuses new messages, waits up to `deadline` for those in flight, and closes the connections.
    ///
    /// An unconfirmed message ends with an error on its receipt and is counted in the report. Further calls
    /// wait for the same end. Dropping the future does not cancel it: new messages stay refused.
    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport>;
}

/// Conveniences over [`MessageBroker`], kept apart so that a wrapper cannot bypass the broker it wraps.
pub trait MessageBrokerExt: MessageBroker {
    /// Publishes `message` and waits for the broker's confirm.
    ///
    /// # Errors
    /// The reason why the message was not confirmed; the error returns the message.
    ///
    /// # Cancel safety
    /// Dropped before the message has a slot in the window, nothing is sent. Dropped later, the message may
    /// arrive.
    fn publish(
        &self,
        message: Message,
    ) -> impl Future<Output = Result<Confirmation, PublishError>> + Send {
        async move { self.enqueue(message).await?.await }
    }

    /// Publishes `message` and waits for the confirm, unless the window is full.
    ///
    /// # Errors
    /// [`Full`](super::PublishErrorKind::Full) if there is no free slot, else as
    /// [`publish`](Self::publish).
    fn try_publish(
        &self,
        message: Message,
    ) -> impl Future<Output = Result<Confirmation, PublishError>> + Send {
        async move { self.try_enqueue(message)?.await }
    }

    /// Publishes a typed event without a mediator, and waits for the broker's confirm.
    ///
    /// Takes the payload, or a [`NotificationEvent`] with an id, time, name or topic of its own. The message
    /// is that of [`NotificationEvent::to_message`].
    ///
    /// ```
    /// # use cqrs_core as cqrs;
    /// use cqrs::event::{EventRoute, Emission};
    /// use cqrs::{Event, MemoryBroker, MessageBrokerExt, Notification};
    ///
    /// #[derive(serde::Serialize)]
    /// struct UserCreated {
    ///     user_id: u64,
    /// }
    ///
    /// // `#[derive(Notification)]` writes these two.
    /// impl Event for UserCreated {
    ///     const NAME: &'static str = "UserCreated";
    ///     const ROUTE: EventRoute = EventRoute::Notification;
    ///     fn into_emission(self) -> Emission {
    ///         Emission::notification(self)
    ///     }
    /// }
    /// impl Notification for UserCreated {
    ///     type Serializer = cqrs::codec::JsonSerializer;
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let broker = MemoryBroker::new();
    /// broker.publish_event(UserCreated { user_id: 7 }).await?;
    /// assert_eq!(broker.messages("output_topic").len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Serialize`](PublishEventError::Serialize) if the event has no wire form, else as
    /// [`publish`](Self::publish).
    ///
    /// # Cancel safety
    /// As [`publish`](Self::publish).
    #[inline]
    fn publish_event<P: Notification>(
        &self,
        event: impl Into<NotificationEvent<P>>,
    ) -> impl Future<Output = Result<Confirmation, PublishEventError>> + Send {
        let message = event.into().to_message();
        async move { Ok(self.publish(message?).await?) }
    }
}

impl<B: MessageBroker + ?Sized> MessageBrokerExt for B {}

/// A pointer to a broker is a broker: `Arc<dyn MessageBroker>` and `Box<dyn MessageBroker>`, too.
macro_rules! impl_for_pointer {
    ($($pointer:ident),*) => {$(
        impl<B: MessageBroker + ?Sized> MessageBroker for $pointer<B> {
            fn enqueue(&self, message: Message) -> BoxFuture<'_, Result<Receipt, PublishError>> {
                (**self).enqueue(message)
            }

            fn try_enqueue(&self, message: Message) -> Result<Receipt, PublishError> {
                (**self).try_enqueue(message)
            }

            fn state(&self) -> BrokerState {
                (**self).state()
            }

            fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ShutdownReport> {
                (**self).shutdown(deadline)
            }
        }
    )*};
}
impl_for_pointer!(Arc, Box);

/// The state of a broker value's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokerState {
    /// No connection was made yet.
    Connecting {
        /// The error of the last attempt, if there was one.
        last_error: Option<Arc<str>>,
    },
    /// Connected, and the broker takes messages.
    Ready,
    /// Connected, but the broker asked publishers to stop (RabbitMQ's `connection.blocked`: a memory
    /// or disk alarm).
    Blocked {
        /// The reason, as the broker reported it.
        reason: Arc<str>,
    },
    /// The connection is lost; the broker value reconnects.
    Disconnected {
        /// The error, as far as it is known.
        last_error: Arc<str>,
    },
    /// [`shutdown`](MessageBroker::shutdown) was called.
    Closed,
}

impl BrokerState {
    /// `true` if a message published now would be sent at once.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }
}

/// The result of a [`shutdown`](MessageBroker::shutdown).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "it says how many messages were not delivered"]
pub struct ShutdownReport {
    /// Messages that were in flight and not confirmed by the deadline.
    pub undelivered: usize,
}

impl ShutdownReport {
    /// A report of `undelivered` messages.
    pub fn new(undelivered: usize) -> Self {
        Self { undelivered }
    }
}
