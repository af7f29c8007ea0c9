//! The tables of python-cqrs 5 on PostgreSQL: its outbox, which [`PythonRelay`](crate::PythonRelay) publishes,
//! and its inbox.

mod compression;
mod inbox;
mod outbox;

pub(crate) use compression::{Compression, restore};
pub use inbox::PythonInbox;
pub use outbox::PythonOutbox;
