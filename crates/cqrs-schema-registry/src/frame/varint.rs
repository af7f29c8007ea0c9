//! Zigzag varints of 32 bits, as Kafka's own protocol and Confluent's message path write them.

use super::{FrameError, FrameErrorKind};

const MAX_BYTES: usize = 5;

/// Reads the bytes of a frame from the left.
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The number of bytes read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn error(&self, kind: FrameErrorKind) -> FrameError {
        FrameError::new(kind, self.at)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.first_chunk::<N>() {
            Some(array) => {
                self.at += N;
                Ok(*array)
            }
            None => Err(FrameError::new(FrameErrorKind::Truncated, self.bytes.len())),
        }
    }

    /// A number of zero or more. As Kafka's own reader, this one takes padded forms of up to 5 bytes.
    pub(super) fn number(&mut self) -> Result<u32, FrameError> {
        let start = self.at;
        let mut raw = 0_u64;
        for place in 0..MAX_BYTES {
            let [byte] = self.array::<1>()?;
            raw |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 != 0 {
                continue;
            }
            let Ok(raw) = u32::try_from(raw) else { break };
            return match raw & 1 {
                0 => Ok(raw >> 1),
                _ => Err(FrameError::new(FrameErrorKind::Negative, start)),
            };
        }
        Err(FrameError::new(FrameErrorKind::Varint, start))
    }
}

/// Writes a number of at most 31 bits.
pub(super) fn write(number: u32, to: &mut Vec<u8>) {
    let mut raw = u64::from(number) << 1;
    while raw > 0x7f {
        to.push(raw as u8 & 0x7f | 0x80);
        raw >>= 7;
    }
    to.push(raw as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<u32, FrameErrorKind> {
        Reader::new(bytes).number().map_err(|error| error.kind())
    }

    #[test]
    fn numbers_are_read_as_kafka_writes_them() {
        for (bytes, number) in [
            (&[0][..], 0),
            (&[2], 1),
            (&[0x7e], 63),
            (&[0x80, 0x01], 64),
            (&[0xfe, 0xff, 0xff, 0xff, 0x0f], i32::MAX as u32),
        ] {
            assert_eq!(read(bytes), Ok(number));
            let mut written = Vec::new();
            write(number, &mut written);
            assert_eq!(written, bytes);
        }
        assert_eq!(read(&[0x80, 0x00]), Ok(0), "padded, as Java's reader takes it");
    }

    #[test]
    fn invalid_number_is_an_error() {
        assert_eq!(read(&[]), Err(FrameErrorKind::Truncated));
        assert_eq!(read(&[0x80]), Err(FrameErrorKind::Truncated));
        assert_eq!(read(&[1]), Err(FrameErrorKind::Negative));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Err(FrameErrorKind::Negative));
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x10]), Err(FrameErrorKind::Varint));
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x80, 0]), Err(FrameErrorKind::Varint));
    }
}
