//! The compression of stored bodies: zlib streams, with the size of the body beside them.

use miniz_oxide::deflate::compress_to_vec_zlib;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

/// Fast: the writer's transaction is open meanwhile.
const LEVEL: u8 = 3;

/// The compressed body, if that is smaller.
pub(crate) fn compress(body: &[u8]) -> Option<Vec<u8>> {
    // The column of the size.
    i32::try_from(body.len()).ok()?;
    let compressed = compress_to_vec_zlib(body, LEVEL);
    (compressed.len() < body.len()).then_some(compressed)
}

/// The body of a zlib stream, or the reason why there is none. It takes no more memory than `size`.
pub(crate) fn decompress(compressed: &[u8], size: i64) -> Result<Vec<u8>, String> {
    let limit = usize::try_from(size).unwrap_or(0);
    match decompress_to_vec_zlib_with_limit(compressed, limit) {
        Ok(body) if body.len() == limit => Ok(body),
        _ => Err(format!("the body is no zlib stream of {size} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_body_is_restored() {
        let body = "order,".repeat(1_000).into_bytes();
        let compressed = compress(&body).unwrap();
        assert!(compressed.len() < 100, "{}", compressed.len());
        assert_eq!(decompress(&compressed, 6_000), Ok(body));
    }

    #[test]
    fn body_that_would_not_shrink_stays() {
        assert_eq!(compress(b""), None);
        assert_eq!(compress(&(0..=255).collect::<Vec<u8>>()), None);
    }

    #[test]
    fn stream_of_another_size_is_an_error() {
        let compressed = compress(&[7; 1_000]).unwrap();
        for size in [999, 1_001, 0, -1, i64::MAX] {
            assert!(decompress(&compressed, size).is_err(), "{size}");
        }
        assert!(decompress(b"not zlib", 8).is_err());
        assert!(decompress(&compressed[..compressed.len() - 1], 1_000).is_err());
    }
}
