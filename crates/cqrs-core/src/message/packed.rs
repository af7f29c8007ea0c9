//! [`PackedHeaders`]: received headers in one buffer, made by broker crates that copy their records, read through
//! [`Headers`](super::Headers).
//!
//! A header is the lengths of its name and of its value, then name and value. A length is eight characters of seven
//! bits, the lowest first: so headers that are text are one text, which is checked at once.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;

use super::headers::is_legal;

/// Bits of a length in one of its characters.
const BITS: u32 = 7;
/// In place of the length of a null value.
const NULL: u64 = (1 << (BITS * 8)) - 1;
/// The largest number of headers that are searched for a name that occurs twice.
const FEW: usize = 16;

/// Adds a header to a buffer of them.
pub fn put_packed(buffer: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    let mut lengths = [0; 16];
    lengths[..8].copy_from_slice(&length(name.len() as u64));
    lengths[8..].copy_from_slice(&length(value.map_or(NULL, |value| value.len() as u64)));
    buffer.extend_from_slice(&lengths);
    buffer.extend_from_slice(name.as_bytes());
    buffer.extend_from_slice(value.unwrap_or_default());
}

fn length(length: u64) -> [u8; 8] {
    if length >> BITS == 0 {
        return length.to_le_bytes();
    }
    std::array::from_fn(|at| (length >> (BITS * at as u32)) as u8 & 0x7f)
}

fn read(characters: u64) -> u64 {
    if characters >> BITS == 0 {
        return characters;
    }
    let bytes = characters.to_be_bytes();
    bytes.iter().fold(0, |length, character| (length << BITS) | u64::from(*character))
}

/// The lengths of name and value at the beginning of `packed`, and what follows them.
#[inline]
fn split_lengths(packed: &[u8]) -> Option<(usize, Option<usize>, &[u8])> {
    let (name, rest) = packed.split_first_chunk()?;
    let (value, rest) = rest.split_first_chunk()?;
    let length = |characters: &[u8; 8]| read(u64::from_le_bytes(*characters));
    let value = Some(length(value)).filter(|value| *value != NULL);
    Some((length(name) as usize, value.map(|value| value as usize), rest))
}

/// Reads a buffer of headers: names, and values of which `None` is null.
#[derive(Clone)]
pub struct PackedPairs<'b>(pub &'b [u8]);

impl<'b> Iterator for PackedPairs<'b> {
    type Item = (&'b str, Option<&'b [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value, rest) = split_lengths(self.0)?;
        let (name, rest) = rest.split_at_checked(name)?;
        let (bytes, rest) = rest.split_at_checked(value.unwrap_or_default())?;
        self.0 = rest;
        Some((std::str::from_utf8(name).ok()?, value.map(|_| bytes)))
    }
}

/// Received headers that are a few legal texts, each name once, in their buffer.
#[derive(Clone)]
pub struct PackedHeaders(ByteString);

/// One of the headers that [`PackedHeaders::read`] reads.
#[derive(Clone, Copy)]
pub struct PackedHeader<'b> {
    /// Its name.
    pub name: &'b str,
    value: &'b str,
    buffer: &'b ByteString,
}

impl PackedHeader<'_> {
    /// Its value, which shares the buffer.
    pub fn share_value(&self) -> ByteString {
        self.buffer.slice_ref(self.value)
    }
}

impl PackedHeaders {
    /// The headers of a buffer to which [`put_packed`] added them; `accept` gets each of them once, in order. `None` if
    /// it refuses one, if there are many, or if one is such that [`Headers`](super::Headers) changes it or leaves it
    /// out: a value that is null or no text, a name that is illegal or occurs again.
    pub fn read(buffer: Bytes, mut accept: impl FnMut(PackedHeader<'_>) -> bool) -> Option<Self> {
        let text = ByteString::try_from(buffer).ok()?;
        let (mut names, mut count) = ([""; FEW], 0);
        let mut rest = Texts(&text);
        while !rest.0.is_empty() {
            let (name, value) = rest.next()?;
            let known = names.get(..count)?;
            if !is_legal(name) || known.contains(&name) {
                return None;
            }
            *names.get_mut(count)? = name;
            count += 1;
            if !accept(PackedHeader { name, value, buffer: &text }) {
                return None;
            }
        }
        Some(Self(text))
    }

    /// Names and values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        Texts(&self.0)
    }

    /// A name or value that [`iter`](Self::iter) returned. It shares the buffer.
    pub(super) fn share(&self, part: &str) -> ByteString {
        self.0.slice_ref(part)
    }
}

/// Shows names only, as [`Headers`](super::Headers) does.
impl fmt::Debug for PackedPairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.clone().map(|(name, _)| name)).finish()
    }
}

/// Shows its name only, as [`Headers`](super::Headers) does.
impl fmt::Debug for PackedHeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// Shows names only, as [`Headers`](super::Headers) does.
impl fmt::Debug for PackedHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

/// Names and values of packed headers that are text.
#[derive(Clone)]
struct Texts<'t>(&'t str);

impl<'t> Iterator for Texts<'t> {
    type Item = (&'t str, &'t str);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (name, value, _) = split_lengths(self.0.as_bytes())?;
        let value = value?;
        let (name, rest) = self.0.get(16..)?.split_at_checked(name)?;
        let (value, rest) = rest.split_at_checked(value)?;
        self.0 = rest;
        Some((name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Headers;
    use super::*;

    type Pair<'p> = (&'p str, Option<&'p [u8]>);

    fn packed(pairs: &[Pair<'_>]) -> Bytes {
        let mut buffer = Vec::new();
        pairs.iter().for_each(|(name, value)| put_packed(&mut buffer, name, *value));
        buffer.into()
    }

    fn headers(pairs: &[Pair<'_>]) -> Option<Headers> {
        PackedHeaders::read(packed(pairs), |_| true).map(Headers::from)
    }

    fn inserted(pairs: &[Pair<'_>]) -> Headers {
        let legal = pairs.iter().filter_map(|(name, value)| Some((*name, (*value)?)));
        Headers::from_pairs(legal.map(|(name, value)| (name.into(), Bytes::copy_from_slice(value))))
    }

    #[test]
    fn pairs_are_read_as_they_were_put() {
        let long = vec![7; 300_000];
        let pairs: [Pair<'_>; 5] = [
            ("a", Some(b"1")),
            ("", None),
            ("", Some(b"")),
            ("a", Some(&long)),
            ("ä", Some(b"\xff")),
        ];
        let buffer = packed(&pairs);
        assert_eq!(PackedPairs(&buffer).collect::<Vec<_>>(), pairs);
        for end in 0..packed(&pairs[..1]).len() {
            assert_eq!(PackedPairs(&buffer[..end]).count(), 0, "cut at {end}");
        }
    }

    #[test]
    fn packed_headers_read_as_inserted_ones() {
        let pairs: [Pair<'_>; 3] =
            [("a", Some(b"1")), ("id", Some(b"")), ("ä", Some("é".as_bytes()))];
        let (packed, inserted) = (headers(&pairs).unwrap(), inserted(&pairs));
        assert_eq!(packed, inserted);
        assert_eq!(packed.iter().collect::<Vec<_>>(), [("a", "1"), ("id", ""), ("ä", "é")]);
        assert_eq!((packed.iter().len(), packed.len(), packed.size()), (3, 3, 8));
        assert!(!packed.is_empty() && headers(&[]).unwrap().is_empty());
        assert_eq!((packed.get("ä"), packed.get("b")), (Some("é"), None));
        assert_eq!(packed.get_bytes("id"), Some(&b""[..]));
        assert_eq!(format!("{packed:?}"), format!("{inserted:?}"));
        assert_ne!(packed, headers(&pairs[1..]).unwrap());
    }

    #[test]
    fn long_names_and_values_are_read() {
        let name = "n".repeat(255);
        for length in [127, 128, 16_383, 16_384, 2 << 20] {
            let value = "v".repeat(length);
            let pairs: [Pair<'_>; 2] = [(&name, Some(value.as_bytes())), ("a", Some(b"1"))];
            assert_eq!(headers(&pairs).unwrap(), inserted(&pairs), "{length}");
        }
    }

    #[test]
    fn packed_headers_change_as_inserted_ones() {
        let pairs: [Pair<'_>; 2] = [("a", Some(b"1")), ("b", Some(b"2"))];
        let changes: [fn(&mut Headers); 5] = [
            |headers| headers.insert("a", "3").unwrap(),
            |headers| headers.insert("c", "3").unwrap(),
            |headers| headers.insert_bytes("a", &b"\xff"[..]).unwrap(),
            |headers| assert!(headers.remove("a") && !headers.remove("a")),
            |headers| headers.set_correlation_id("c-1"),
        ];
        for change in changes {
            let (mut packed, mut inserted) = (headers(&pairs).unwrap(), inserted(&pairs));
            let before = packed.clone();
            change(&mut packed);
            change(&mut inserted);
            assert_eq!(packed, inserted);
            assert_eq!(before, self::inserted(&pairs), "a clone does not change");
        }
    }

    #[test]
    fn headers_that_change_when_inserted_are_not_packed() {
        let name = "n".repeat(256);
        let cases: [&[Pair<'_>]; 6] = [
            &[("a", Some(b"1")), ("b", Some(b"\xff"))],
            // The two values are one character together, and none alone.
            &[("a", Some(b"\xc3")), ("", Some(b"\xa9"))],
            &[("a", None)],
            &[("", Some(b"1"))],
            &[(&name, Some(b"1"))],
            &[("a", Some(b"1")), ("b", Some(b"2")), ("a", Some(b"1"))],
        ];
        for pairs in cases {
            assert!(headers(pairs).is_none(), "{pairs:?}");
        }
        let names: Vec<_> = (0..=FEW).map(|number| number.to_string()).collect();
        let many: Vec<Pair<'_>> = names.iter().map(|name| (&**name, Some(&b""[..]))).collect();
        assert!(headers(&many).is_none() && headers(&many[1..]).is_some());
        let buffer = packed(&[("a", Some(b"1"))]);
        for end in 1..buffer.len() {
            let read = PackedHeaders::read(buffer.slice(..end), |_| true);
            assert!(read.is_none(), "cut at {end}");
        }
    }

    #[test]
    fn each_header_is_offered_and_shares_the_buffer() {
        let buffer = packed(&[("a", Some(b"1")), ("b", Some(b"value"))]);
        let (mut names, mut last) = (Vec::new(), ByteString::new());
        let read = PackedHeaders::read(buffer.clone(), |header| {
            names.push(header.name.to_owned());
            last = header.share_value();
            true
        });
        assert!(read.is_some());
        assert_eq!((names, &*last), (vec!["a".to_owned(), "b".to_owned()], "value"));
        assert_eq!(last.as_bytes().as_ptr_range().end, buffer.as_ptr_range().end);
        assert!(PackedHeaders::read(buffer, |header| header.name != "b").is_none());
    }
}
