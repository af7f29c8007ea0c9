//! The serialized form of one event, returned by serializers.

use bytes::Bytes;

use crate::message::Headers;

/// The wire form of one event.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The message's body.
    pub body: Bytes,
    /// Its media type.
    pub content_type: &'static str,
    /// Headers that this form needs beside the body.
    pub headers: Headers,
}

crate::debug_fields!(Encoded { content_type, headers }, |it| body_bytes: it.body.len());
