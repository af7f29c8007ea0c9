//! The conversion of JSON in any Unicode encoding to UTF-8, for the JSON deserializer.

use std::borrow::Cow;

/// The text as UTF-8, without a byte order mark. The encoding is detected as Python's `json.loads` does: by
/// the mark, or else by the zeros among the first four bytes (the first two characters of JSON are ASCII,
/// or the text is UTF-8). UTF-8 is not validated here.
pub(super) fn to_utf8(body: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    match body {
        // The common case.
        [b'{' | b'[', next, ..] if *next != 0 => Ok(Cow::Borrowed(body)),
        [0xef, 0xbb, 0xbf, text @ ..] => Ok(Cow::Borrowed(text)),
        [0, 0, 0xfe, 0xff, text @ ..] => from_utf32(text, u32::from_be_bytes),
        [0xff, 0xfe, 0, 0, text @ ..] => from_utf32(text, u32::from_le_bytes),
        [0xfe, 0xff, text @ ..] => from_utf16(text, u16::from_be_bytes),
        [0xff, 0xfe, text @ ..] => from_utf16(text, u16::from_le_bytes),
        [0, 0, _, _, ..] => from_utf32(body, u32::from_be_bytes),
        [0, _, ..] => from_utf16(body, u16::from_be_bytes),
        [_, 0, 0, 0, ..] => from_utf32(body, u32::from_le_bytes),
        [_, 0, ..] => from_utf16(body, u16::from_le_bytes),
        _ => Ok(Cow::Borrowed(body)),
    }
}

fn from_utf16(text: &[u8], read: fn([u8; 2]) -> u16) -> Result<Cow<'static, [u8]>, &'static str> {
    let (units, []) = text.as_chunks::<2>() else {
        return Err("its text is UTF-16 with an odd number of bytes");
    };
    let chars = char::decode_utf16(units.iter().map(|unit| read(*unit)));
    let text: Result<String, _> = chars.collect();
    let text = text.map_err(|_| "its text is UTF-16 with half of a surrogate pair")?;
    Ok(Cow::Owned(text.into_bytes()))
}

fn from_utf32(text: &[u8], read: fn([u8; 4]) -> u32) -> Result<Cow<'static, [u8]>, &'static str> {
    let (units, []) = text.as_chunks::<4>() else {
        return Err("its text is UTF-32 with a character that is cut off");
    };
    let text: Option<String> = units.iter().map(|unit| char::from_u32(read(*unit))).collect();
    let text = text.ok_or("its text is UTF-32 with a number that is no character")?;
    Ok(Cow::Owned(text.into_bytes()))
}
