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
//! A *topic* is a bounded log. A *group* reads all of a topic once; its subscribers share the work. Topics
//! and groups are made when they are first named, and stay.
//!
//! * A message is *settled* by a group when one of its subscribers acked it. Until then the topic keeps it.
//!   A message that every group settled (and any message, while there is no group) is kept, too, for new
//!   groups and for [`MemoryBroker::messages`], until its slot is needed.
//! * A topic that is full of messages that some group did not settle takes no more: a publish waits in the
//!   window, in order, until its deadline; `try_publish` returns `Full`.
//! * A delivery that is dropped or nacked is given back: it is redelivered before the later messages of its
//!   key, and after those of other keys. The number of redeliveries is not limited.
//! * A [`Service`](crate::Service) runs on it as on any broker. [`MemorySubscription`] chooses where failed
//!   messages wait for a later attempt.
//! * [`MemoryBroker::faults`] injects the faults of real brokers.
//!
//! # Invariants
//! 1. A confirmed message is kept until every group that existed at its confirm has settled it.
//! 2. Offsets, and so the order within a key, are the order in which `enqueue` resolved. No message
//!    overtakes one that waits for room in its topic.
//! 3. In one group at most one message of a key is in flight or ready; the others wait in the key's queue.
//!    A message without a key waits for no other. A service keeps the order of a key itself, so only it
//!    takes the next messages of a key that it has; while no other member takes messages, none has to wait
//!    in a queue. (After [`MemoryFaults::revoke`] a handler of the
//!    revoked delivery may still run.)
//! 4. Every unsettled message of a group is in exactly one place: ready, in a queue, in flight, or delayed.
//!    A retry copy counts beside its original, until that is acked.
//! 5. A topic never keeps more than its capacity.
//! 6. Each delivery has a tag of its own. A revoked one settles nothing.
//! 7. One lock per topic guards all of the above. It is never held while a waker is called or a
//!    confirm is sent, nor across an `.await`.
//! 8. While a message is ready and a member waits, one of the waiting members has a wake-up: who takes a
//!    message and leaves another ready wakes the next one. A member that takes none for now (a full or
//!    stopped source) is not registered, so that it takes no wake-up of another.

mod broker;
mod builder;
mod fault_plan;
mod faults;
mod group;
mod log;
mod options;
mod ordered;
mod settle;
mod source;
mod source_state;
mod state;
mod stored;
mod subscriber;
mod topic;

#[cfg(test)]
mod tests;

pub use broker::MemoryBroker;
pub use builder::MemoryBrokerBuilder;
pub use faults::MemoryFaults;
pub use options::{MemoryRetry, MemorySubscription};
pub use subscriber::{MemoryDelivery, MemorySubscriber};
