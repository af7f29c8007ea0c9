//! The zlib compression of python-cqrs's payloads (its `ZlibCompressor`).

use miniz_oxide::deflate::compress_to_vec_zlib;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// The level that Python's `zlib.compress` has by default.
const LEVEL: u8 = 6;

/// A body that becomes larger is an error: a small row may not fill the memory.
const MAX_BODY: usize = 64 << 20;

/// The compression of the stored payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// A payload that is a whole zlib stream is compressed.
    Detect,
    /// All are compressed.
    Zlib,
    /// None is.
    None,
}

pub(crate) fn compress(body: &[u8]) -> Vec<u8> {
    compress_to_vec_zlib(body, LEVEL)
}

/// The body of a stored payload, or the reason why there is none.
pub(crate) fn restore(payload: Vec<u8>, compression: Compression) -> Result<Vec<u8>, String> {
    let is_compressed = match compression {
        Compression::Detect => has_zlib_header(&payload),
        Compression::Zlib => true,
        Compression::None => false,
    };
    if !is_compressed {
        return Ok(payload);
    }
    match inflate(&payload) {
        Ok((_, rest)) if rest > 0 && compression == Compression::Detect => Ok(payload),
        // Python's `zlib.decompress` ignores what follows the stream.
        Ok((body, _)) => Ok(body),
        Err(TINFLStatus::HasMoreOutput) => {
            Err(format!("the payload is larger than {MAX_BODY} bytes when decompressed"))
        }
        // Another format may begin with the same two bytes. Its checksum would not match.
        Err(_) if compression == Compression::Detect => Ok(payload),
        Err(_) => Err("the payload is no zlib stream".to_owned()),
    }
}

/// The body of the zlib stream that `payload` begins with, and the number of bytes that follow the stream.
fn inflate(payload: &[u8]) -> Result<(Vec<u8>, usize), TINFLStatus> {
    let flags = TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut inflater = Box::<DecompressorOxide>::default();
    let mut body = vec![0; payload.len().saturating_mul(2).min(MAX_BODY)];
    let (mut input, mut written) = (payload, 0);
    loop {
        let (status, read, more) = decompress(&mut inflater, input, &mut body, written, flags);
        input = input.get(read..).unwrap_or_default();
        written += more;
        match status {
            TINFLStatus::Done => {
                body.truncate(written);
                return Ok((body, input.len()));
            }
            TINFLStatus::HasMoreOutput if body.len() < MAX_BODY => {
                body.resize(body.len().saturating_mul(2).min(MAX_BODY), 0);
            }
            failed => return Err(failed),
        }
    }
}

/// By [RFC 1950, section 2.2](https://www.rfc-editor.org/rfc/rfc1950#section-2.2): deflate, a window of at
/// most 32 KiB, no dictionary, and the check of both bytes.
fn has_zlib_header(payload: &[u8]) -> bool {
    let &[first, second, ..] = payload else { return false };
    let is_deflate = first & 0x0f == 8 && first >> 4 <= 7;
    is_deflate && second & 0x20 == 0 && u16::from_be_bytes([first, second]).is_multiple_of(31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `zlib.compress(b'{"a":1}')` of Python 3.11.
    const PYTHON: &[u8] =
        &[0x78, 0x9c, 0xab, 0x56, 0x4a, 0x54, 0xb2, 0x32, 0xac, 0x05, 0x00, 0x08, 0x2a, 0x02, 0x09];

    fn restored(payload: &[u8], compression: Compression) -> Result<Vec<u8>, String> {
        restore(payload.to_vec(), compression)
    }

    #[test]
    fn compressed_payload_is_restored() {
        for payload in [PYTHON, &compress(b"{\"a\":1}")] {
            for compression in [Compression::Detect, Compression::Zlib] {
                assert_eq!(restored(payload, compression).unwrap(), b"{\"a\":1}");
            }
            assert_eq!(restored(payload, Compression::None).unwrap(), payload);
        }
    }

    #[test]
    fn plain_payload_stays_verbatim() {
        // The last ones have the header of a zlib stream, and are none.
        let cut = &PYTHON[..PYTHON.len() - 1];
        let longer = [PYTHON, b"x"].concat();
        assert_eq!(restored(&longer, Compression::Detect).unwrap(), longer);
        // As Python's `zlib.decompress`.
        assert_eq!(restored(&longer, Compression::Zlib).unwrap(), b"{\"a\":1}");
        for payload in [b"".as_slice(), b"{", b"{\"a\":1}", b"x\x9c", b"x\x9cabc", cut] {
            assert_eq!(restored(payload, Compression::Detect).unwrap(), payload);
            assert!(restored(payload, Compression::Zlib).is_err(), "{payload:?}");
        }
    }

    #[test]
    fn payload_that_grows_too_large_is_an_error() {
        let bomb = compress(&vec![0; MAX_BODY + 1]);
        assert!(bomb.len() < MAX_BODY / 500);
        for compression in [Compression::Detect, Compression::Zlib] {
            let error = restored(&bomb, compression).unwrap_err();
            assert!(error.contains("67108864 bytes"), "{error}");
        }
    }
}
