//! A message as a topic stores it, shared by the log and all groups.

use std::sync::Arc;

use bytes::Bytes;
use uuid::fmt::Hyphenated;

use crate::broker::SharedMessage;
use crate::consume::Incoming;
use crate::message::{ByteString, Message};

/// A stored message as it was published, and as a service gets it.
#[derive(Debug, Clone)]
pub(super) struct StoredMessage {
    message: SharedMessage,
    incoming: Arc<Incoming>,
}

/// The text of an id. As the owner of [`Bytes`], it takes one allocation, and its clones take none.
struct IdText([u8; Hyphenated::LENGTH]);

impl AsRef<[u8]> for IdText {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl StoredMessage {
    /// The message at `offset`.
    pub(super) fn new(message: SharedMessage, offset: u64) -> Self {
        let mut text = [0; Hyphenated::LENGTH];
        message.id.hyphenated().encode_lower(&mut text);
        let id = ByteString::try_from(Bytes::from_owner(IdText(text))).unwrap_or_default();
        let mut incoming = Incoming::with_id(&message, id);
        incoming.offset = i64::try_from(offset).ok();
        Self { message, incoming: Arc::new(incoming) }
    }

    pub(super) fn message(&self) -> &Message {
        &self.message
    }

    /// The message as a service gets it.
    pub(super) fn to_incoming(&self, redelivered: bool) -> Arc<Incoming> {
        match redelivered {
            false => Arc::clone(&self.incoming),
            true => Arc::new(Incoming { redelivered, ..(*self.incoming).clone() }),
        }
    }
}
