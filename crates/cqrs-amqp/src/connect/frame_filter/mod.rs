//! The filter between the socket and lapin: replaces frames of the server that lapin cannot read.
//!
//! lapin ends the connection over a message whose properties it cannot parse, or whose content header is
//! larger than `frame_max` (RabbitMQ sends those unchecked), and a table nested a thousand deep overflows
//! the stack of its thread. The server then delivers the same message to the next connection. So each
//! content header is checked here first, and one that lapin cannot read is replaced by one it can:
//!
//! * the properties and headers that can be read stay,
//! * the header [`UNREADABLE`](crate::headers::UNREADABLE) has the reason,
//! * [`UNREADABLE_PROPERTIES`](crate::headers::UNREADABLE_PROPERTIES) has the original property flags and list, cut where they do not fit.
//!
//! The frames about messages of confirm channels do not pass: they go to their publishers
//! ([`confirm_channel`](super::confirm_channel)), whose messages the stream writes between the frames of lapin.
//!
//! Names in method frames that are not UTF-8 (a routing key) are replaced by their nearest text, and the
//! message's header says so and has the original bytes. All other bytes pass unchanged.
//!
//! Behind the answer to lapin's `connection.close` nothing is read: lapin reads all that is there before it handles a
//! frame, so the end of the socket behind that answer was an error in its log, now and then.
//!
//! `docs/upstream-lapin.md` describes the change in lapin that would replace it.

mod fields;
mod filter;
mod header;
mod method;
mod stream;
#[cfg(test)]
mod tests;

pub(super) use fields::Fields;
pub(super) use header::message_id;
pub(super) use stream::{Filtered, FirstByte, Sockets};
