//! The producer: the way of a message from `enqueue` to its confirm; used by the broker value.
//!
//! ```text
//! enqueue ─ Intake (window, deadline) ─ hash of topic and key ─┬─ publisher 0 ─ channel
//!                                                              └─ publisher n ─ channel
//! ```
//!
//! # Ownership
//! * The **[`ProducerHandle`](handle::ProducerHandle)** is the broker value's end: it admits messages and
//!   sends each to its publisher.
//! * A **[publisher]** is one task. It alone publishes on its channel, so delivery tags, frames and its
//!   unconfirmed messages have one order. It publishes past lapin, on a
//!   [`ConfirmChannel`](crate::connect::ConfirmChannel).
//! * **[`Unconfirmed`](unconfirmed::Unconfirmed)** holds every message of a publisher, queued or sent. It does
//!   no I/O. A message is in it exactly once, and leaves it with exactly one outcome on its receipt.
//! * The **[`FrameFormat`](frame::FrameFormat)** makes the bytes of a message.
//! * **[`Status`](status::Status)** is the state of all publishers, for health checks and errors.
//! * The window bounds the sum over all publishers; the queues in between are unbounded and never block.
//!
//! # In flight
//! All messages that the window admits may be in flight. Exceptions: nothing is sent while the server blocks
//! the connection; after a channel error the messages that were on the channel are sent one at a time; in the
//! python-compatible mode a publisher waits for its first declaration of a topic.
//!
//! # Cancel and panic
//! Dropping a caller's future or receipt touches no publisher. If a publisher panics, its messages are dropped:
//! their receipts end at once (`NotSent` or `Unknown`), their places in the window are freed, the broker's
//! state is `Disconnected` from then on, and publishing to that publisher is `Closed`. Dropping the broker value
//! ends all publishers in the same way.

pub(crate) mod frame;
pub(crate) mod handle;
mod opening;
pub(crate) mod publisher;
pub(crate) mod status;
pub(crate) mod unconfirmed;

#[cfg(test)]
mod tests;
