//! Publishing past lapin: frames of messages go to the socket, and confirms come from it, without lapin's queues.
//!
//! ```text
//! publisher ── ConfirmChannel ── frames ──▶ FrameWriter ──▶ socket ◀── lapin: all other frames
//!     ▲                                                       │
//!     └───────────── Answer ◀── AnswerReader ◀── frame filter ─┴──▶ lapin: all other frames
//! ```
//!
//! lapin opens the connection and its channels, and it keeps both. On a channel that a [`ConfirmChannel`] was opened
//! on, only its owner publishes. lapin needs some 11,000 instructions, 14 allocations and three futures for a message,
//! and gives no order to confirms: tags and frames are taken under separate locks, a return is attached to whichever
//! confirm is next, and those of one `multiple` are resolved in any order. Here a message is copied once, and the
//! answers come in the order of the server.
//!
//! # How it depends on lapin
//! * lapin reads and writes through the stream of this crate ([`Filtered`](super::frame_filter::Filtered)), on one
//!   thread. It flushes the stream in each turn of its loop, and a wake-up of its reader starts a turn (one of its
//!   writer only if it has bytes itself). The [`FrameWriter`] writes in that flush. lapin writes nothing after a flush
//!   that is pending, so the flush never is. The manifest asks for this minor version of lapin. If lapin did not flush,
//!   messages would stay here until they expire, and the source of their errors would say so.
//! * lapin does not see `basic.ack`, `basic.nack` and `basic.return` of these channels, because it would close a
//!   channel over a tag that it did not give. It counts what it reads as the server's heartbeat, so it gets a
//!   heartbeat frame in their place, once a second.
//!
//! # Invariants
//! * The writer begins messages only between two frames of lapin, and lapin's next frame follows the last byte of
//!   the messages that the writer began. So no frame is split, and a `channel.close` of lapin never comes between the
//!   frames of one message.
//! * Nothing is written on a channel after lapin's `channel.close` or `channel.close-ok` for it: messages that the
//!   writer has not begun are discarded when the server closes the channel, and when its owner drops it.
//! * While the server blocks the connection, no message is begun. Nor while lapin has bytes that wait: so a publisher
//!   that saturates the socket does not hold lapin's frames up.

mod channel;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use channel::{Answer, ConfirmChannel, ConfirmChannels, Returned};
pub(super) use reader::{AnswerReader, Recipient};
pub(super) use writer::FrameWriter;
