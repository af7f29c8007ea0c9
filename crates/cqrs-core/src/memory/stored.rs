//! A message as a topic stores it, shared by the log and all groups.

use std::sync::Arc;

use bytes::Bytes;
use uuid::fmt::Hyphenated;

use crate::consume::Incoming;
use crate::message::{ByteString, Message};

/// A stored message, and its id as text, which every delivery has.
#[derive(Debug)]
pub(super) struct StoredMessage {
    message: Arc<Message>,
    id: ByteString,
}

/// The text of an id. As the owner of [`Bytes`], it takes one allocation, and its clones take none.
struct IdText([u8; Hyphenated::LENGTH]);

impl AsRef<[u8]> for IdText {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl StoredMessage {
    pub(super) fn new(message: Arc<Message>) -> Arc<Self> {
        let mut text = [0; Hyphenated::LENGTH];
        message.id.hyphenated().encode_lower(&mut text);
        let id = ByteString::try_from(Bytes::from_owner(IdText(text))).unwrap_or_default();
        // Bytes of a vector allocate at their first clone: here, so that no delivery does.
        drop((message.key.clone(), message.body.clone()));
        Arc::new(Self { message, id })
    }

    pub(super) fn message(&self) -> &Message {
        &self.message
    }

    pub(super) fn shared(&self) -> Arc<Message> {
        Arc::clone(&self.message)
    }

    /// The message as a consumer gets it.
    pub(super) fn to_incoming(&self) -> Incoming {
        Incoming::with_id(&self.message, self.id.clone())
    }
}
