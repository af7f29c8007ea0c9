//! [`FrameError`]: the error of reading a frame; used by the frame and the hooks that read it.

use std::fmt;

/// The kind of an error in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameErrorKind {
    /// There are no bytes at all.
    Empty,
    /// The first byte is no magic byte of a frame: the message is not framed.
    Unframed,
    /// The bytes end inside the frame.
    Truncated,
    /// A number of the message path is longer than 5 bytes or larger than 32 bits.
    Varint,
    /// A number of the message path is negative, as in a path of confluent-kafka-python's old
    /// `use.deprecated.format`, which is not supported.
    Negative,
    /// A message path with no index, with more than
    /// [`MessagePath::MAX_DEPTH`](crate::MessagePath::MAX_DEPTH) of them, or with one above 2^31 - 1.
    Path,
}

/// The kind and the place of an error in a frame. It holds none of the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FrameError {
    kind: FrameErrorKind,
    at: usize,
}

impl FrameError {
    pub(crate) fn new(kind: FrameErrorKind, at: usize) -> Self {
        Self { kind, at }
    }

    /// The kind of error.
    pub fn kind(&self) -> FrameErrorKind {
        self.kind
    }

    /// The number of bytes of the frame read before the error.
    pub fn at(&self) -> usize {
        self.at
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at;
        match self.kind {
            FrameErrorKind::Empty => f.write_str("no schema id: there are no bytes"),
            FrameErrorKind::Unframed => {
                f.write_str("no schema id: the first byte is no magic byte of the wire format")
            }
            FrameErrorKind::Truncated => {
                write!(f, "the schema id is cut off: the bytes end after {at}")
            }
            FrameErrorKind::Varint => {
                write!(f, "the message path is malformed: no 32-bit varint at byte {at}")
            }
            FrameErrorKind::Negative => {
                write!(f, "the message path is malformed: a negative number at byte {at}")
            }
            FrameErrorKind::Path => write!(
                f,
                "not a message path: 1 to {} indexes, each at most 2^31 - 1, are allowed",
                super::MessagePath::MAX_DEPTH
            ),
        }
    }
}

impl std::error::Error for FrameError {}

cqrs_core::error_debug!(FrameError, kind, at);
