//! A broker inside the process: for tests, for trying things out, and for one-process services.
//!
//! ```
//! use cqrs_core::{MemoryBroker, Message, MessageBrokerExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = MemoryBroker::new();
//! let mails = broker.subscriber("user_events", "mailer");
//!
//! broker.publish(Message::new("user_events", "{}").with_key("user-7")).await?;
//!
//! let delivery = mails.recv().await.expect("the broker is not shut down");
//! assert_eq!(delivery.message().key.as_deref(), Some(b"user-7".as_slice()));
//! delivery.ack();
//! # Ok(())
//! # }
//! ```
//!
//! # The model
//! A *topic* is a bounded log. A *group* reads all of a topic once; its subscribers share the work.
//! Topics and groups come into being when they are first named, and stay.
//!
//! * A message is *settled* by a group when one of its subscribers acked it. Until then the topic keeps
//!   it. A message that every group settled (and any message, while there is no group) is kept too, for
//!   groups to come and for [`MemoryBroker::messages`], until its place is needed.
//! * A topic that is full of messages that some group did not settle takes no more: a publish waits
//!   in the window, in order, until its deadline; `try_publish` says `Full`.
//! * A delivery that is dropped or nacked is given back: it comes again, before anything later of its
//!   key, after what is there of other keys. There is no limit to how often.
//! * A [`Service`](crate::Service) runs on it as on any broker. Where its failed messages wait for a
//!   later attempt is an option: [`MemorySubscription`].
//! * [`MemoryBroker::faults`] lets things go wrong as they do with real brokers.
//!
//! # Invariants
//! 1. Whatever was confirmed is kept until every group that existed then has settled it.
//! 2. Offsets, and so the order in a group's lane of a key, are the order in which `enqueue` resolved;
//!    a message that waits for room in its topic is overtaken by none.
//! 3. In one group at most one message of a key is handed out or ready to be; the others wait in the
//!    key's lane. A message without a key has a lane of its own. Only a service, which keeps the order of
//!    a key itself, gets what is behind a message that it has; other members do not. (After
//!    [`MemoryFaults::revoke`] one more can be in the hands of whoever it was taken from.)
//! 4. Every unsettled message of a group is in exactly one place: ready, in a lane, handed out, or
//!    delayed. A copy for a later attempt counts beside its original, until that is acked.
//! 5. A topic never keeps more than its capacity.
//! 6. Each handing-out has a tag of its own. One that the group does not know any more settles nothing.
//! 7. One lock per topic guards all of the above. It is never held while a waker is called or a
//!    confirm is sent, nor across an `.await`.

mod broker;
mod builder;
mod fault_plan;
mod faults;
mod group;
mod options;
mod settle;
mod source;
mod source_state;
mod state;
mod subscriber;
mod topic;

#[cfg(test)]
mod tests;

pub use broker::MemoryBroker;
pub use builder::MemoryBrokerBuilder;
pub use faults::MemoryFaults;
pub use options::{MemoryRetry, MemorySubscription};
pub use subscriber::{MemoryDelivery, MemorySubscriber};
