//! [`Unframe`]: the removal of a frame; used by both readers of framed messages.

use bytes::Bytes;
use cqrs_core::consume::Incoming;

use crate::{Frame, FrameError, FrameErrorKind, MessagePath, SchemaType};

/// The policy for a message without a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnframed {
    /// It is an error.
    #[default]
    Refuse,
    /// It is decoded as it is: for a topic whose writers do not all frame yet. A message counts as
    /// unframed when it has no schema header and its first byte, if it has one, is neither 0 nor 1, with
    /// which no JSON and no Protobuf body begins. A frame that is broken stays an error.
    Pass,
}

/// Removes the frame, from the header or from before the body, and checks its message path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unframe {
    pub(crate) schema_type: SchemaType,
    pub(crate) path: Option<MessagePath>,
    pub(crate) on_unframed: OnUnframed,
}

/// The reason why a frame cannot be removed. It holds none of the message's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnframeError {
    #[error("{0}")]
    Frame(FrameError),
    #[error("the schema's message {found}, expected {expected}")]
    Path { found: MessagePath, expected: MessagePath },
}

impl Unframe {
    /// Frames of `schema_type`.
    pub(crate) fn new(schema_type: SchemaType) -> Self {
        Self { schema_type, path: None, on_unframed: OnUnframed::Refuse }
    }

    /// The frame and the body behind it; no frame where the policy allows a message without one.
    pub(crate) fn split(&self, message: &Incoming) -> Result<(Option<Frame>, Bytes), UnframeError> {
        let (frame, body) = self.split_any(message).map_err(UnframeError::Frame)?;
        match (&self.path, frame.as_ref().and_then(Frame::path)) {
            (Some(expected), Some(found)) if found != expected => {
                Err(UnframeError::Path { found: found.clone(), expected: expected.clone() })
            }
            _ => Ok((frame, body)),
        }
    }

    /// As [`split`](Self::split), for any message of the schema.
    pub(crate) fn split_any(
        &self,
        message: &Incoming,
    ) -> Result<(Option<Frame>, Bytes), FrameError> {
        match self.find(message) {
            Ok((frame, body)) => Ok((Some(frame), body)),
            Err(error)
                if self.on_unframed == OnUnframed::Pass
                    && matches!(error.kind(), FrameErrorKind::Unframed | FrameErrorKind::Empty)
                    && header(message).is_none() =>
            {
                Ok((None, message.bytes()))
            }
            Err(error) => Err(error),
        }
    }

    fn find(&self, message: &Incoming) -> Result<(Frame, Bytes), FrameError> {
        match header(message) {
            // Bytes behind the frame in a header are ignored, as by Confluent's clients.
            Some(value) => Ok((Frame::read(self.schema_type, value)?.0, message.bytes())),
            None => Frame::split(self.schema_type, &message.bytes()),
        }
    }
}

/// Set if the message is empty: no header, no byte of a frame or a body.
pub(crate) fn is_void(message: &Incoming) -> bool {
    message.bytes().is_empty() && header(message).is_none()
}

fn header(message: &Incoming) -> Option<&[u8]> {
    message.headers.get_bytes(Frame::HEADER)
}
