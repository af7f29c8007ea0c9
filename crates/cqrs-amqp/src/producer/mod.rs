//! The producer: what happens to a message between `enqueue` and its confirm.
//!
//! ```text
//! enqueue ─ Intake (window, deadline) ─ hash of topic and key ─┬─ lane 0 ─ channel
//!                                                              └─ lane n ─ channel
//! ```
//!
//! # Who owns what
//! * A **lane** is one task. It alone publishes on its channel, so the order of delivery tags, of frames
//!   and of its ledger is one order (in lapin two tasks can swap tags and frames of one channel, and so
//!   swap confirms).
//! * The **[`Ledger`](ledger::Ledger)** holds every message of a lane: waiting to be written, or written
//!   and without a verdict. It does no I/O. A message is in it exactly once, and leaves it with exactly
//!   one verdict on its receipt.
//! * The **[`Confirms`](confirms::Confirms)** hold one future of lapin per written message and nothing of
//!   ours: dropping them loses no message.
//! * The window bounds the sum over all lanes; the queues in between are unbounded and never wait.
//!
//! # What may be in flight
//! Anything the window admits. Exceptions: nothing is written while the server blocks the connection;
//! after a channel error the messages that were on it go one at a time; in the python-compatible mode a
//! lane waits for its first declaration of a topic.
//!
//! # What a cancel or a panic leaves behind
//! Dropping a caller's future or receipt touches no lane. Should a lane panic, its messages are dropped:
//! their receipts end at once (`NotSent` or `Unknown`), their places in the window come back, the
//! broker's state is `Disconnected` from then on, and what is published to that lane is `Closed`.
//! Dropping the broker value ends all lanes in the same way.

pub(crate) mod confirms;
mod flights;
pub(crate) mod frame;
pub(crate) mod lane;
pub(crate) mod ledger;
pub(crate) mod status;

#[cfg(test)]
mod tests;
