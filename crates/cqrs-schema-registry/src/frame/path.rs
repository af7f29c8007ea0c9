//! [`MessagePath`]: the message of a `.proto` file that a body holds; part of the frame.

use std::borrow::Cow;
use std::fmt;

use super::varint::{self, Reader};
use super::{FrameError, FrameErrorKind};

/// The message of a `.proto` file that a body holds: the index of the top-level message, then of the
/// message nested in it, and so on, counted from 0 in the order of the file.
///
/// ```
/// use cqrs_schema_registry::MessagePath;
///
/// assert_eq!(MessagePath::FIRST.indexes(), [0]);
/// let path = MessagePath::new([2, 0])?; // the first message inside the third one
/// assert_eq!(path.to_string(), "[2, 0]");
/// # Ok::<(), cqrs_schema_registry::FrameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MessagePath(Cow<'static, [u32]>);

impl MessagePath {
    /// The first message of the file.
    pub const FIRST: Self = Self(Cow::Borrowed(&[0]));

    /// The largest depth of a path: a received count must not decide how much memory is allocated.
    pub const MAX_DEPTH: usize = 64;

    /// The path of these indexes.
    ///
    /// # Errors
    /// [`FrameErrorKind::Path`] when there is none, more than [`MAX_DEPTH`](Self::MAX_DEPTH), or one
    /// above 2^31 - 1.
    pub fn new(indexes: impl Into<Vec<u32>>) -> Result<Self, FrameError> {
        let indexes = indexes.into();
        let fits = !indexes.is_empty()
            && indexes.len() <= Self::MAX_DEPTH
            && indexes.iter().all(|&index| i32::try_from(index).is_ok());
        match fits {
            true => Ok(Self(Cow::Owned(indexes))),
            false => Err(FrameError::new(FrameErrorKind::Path, 0)),
        }
    }

    /// The indexes, outermost first.
    pub fn indexes(&self) -> &[u32] {
        &self.0
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        let depth = reader.number()? as usize;
        if depth == 0 {
            return Ok(Self::FIRST);
        }
        if depth > Self::MAX_DEPTH {
            return Err(reader.error(FrameErrorKind::Path));
        }
        let first = reader.number()?;
        if (depth, first) == (1, 0) {
            return Ok(Self::FIRST);
        }
        let mut indexes = vec![first];
        for _ in 1..depth {
            indexes.push(reader.number()?);
        }
        Ok(Self(Cow::Owned(indexes)))
    }

    /// The first message is the single byte 0.
    pub(super) fn write(&self, to: &mut Vec<u8>) {
        if self.0 == Self::FIRST.0 {
            to.push(0);
            return;
        }
        varint::write(self.0.len() as u32, to);
        for &index in &*self.0 {
            varint::write(index, to);
        }
    }
}

impl Default for MessagePath {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for MessagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&*self.0).finish()
    }
}
