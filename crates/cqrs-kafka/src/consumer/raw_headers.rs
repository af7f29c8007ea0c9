//! The copied headers of a record in one buffer: written by the [`copier`](super::copier), read from the
//! [`record`](super::record).
//!
//! A header is the lengths of its name and value (`u32`, little endian; [`NULL`] for a null value), then name and
//! value.

use bytes::BufMut as _;

/// In place of the length of a null value.
const NULL: u32 = u32::MAX;

/// The length of a header's name and value together.
pub(super) fn header_len(name: &str, value: Option<&[u8]>) -> usize {
    name.len() + value.map_or(0, <[u8]>::len)
}

pub(super) fn put_header(buffer: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    // A record is smaller than 2 GiB.
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(NULL - 1);
    buffer.put_u32_le(length(name.as_bytes()));
    buffer.put_u32_le(value.map_or(NULL, length));
    buffer.extend_from_slice(name.as_bytes());
    buffer.extend_from_slice(value.unwrap_or_default());
}

/// A header as it is in the Kafka record.
#[derive(Debug)]
pub(super) struct RawHeader<'r> {
    pub(super) name: &'r str,
    pub(super) value: Option<&'r [u8]>,
}

/// Reads copied headers.
pub(super) struct RawHeaders<'r>(pub(super) &'r [u8]);

impl<'r> Iterator for RawHeaders<'r> {
    type Item = RawHeader<'r>;

    fn next(&mut self) -> Option<Self::Item> {
        let (lengths, rest) = self.0.split_first_chunk::<8>()?;
        let [a, b, c, d, e, f, g, h] = *lengths;
        let (name, value) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let (name, rest) = rest.split_at_checked(name as usize)?;
        let is_null = value == NULL;
        let (value, rest) = rest.split_at_checked(if is_null { 0 } else { value as usize })?;
        self.0 = rest;
        let name = std::str::from_utf8(name).ok()?;
        Some(RawHeader { name, value: (!is_null).then_some(value) })
    }
}
