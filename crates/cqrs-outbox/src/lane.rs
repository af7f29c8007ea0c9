//! The hashes of a key: its lane, computed by writers and owned by relays, and its lock.

use std::collections::BTreeSet;

use cqrs_core::Message;
use uuid::Uuid;

/// The lane, from 0 to `lanes - 1`, of a message with this key; without a key, of this event id.
///
/// The rows of one key are in one lane. The hash is FNV-1a with 64 bits, both halves XORed, modulo `lanes`.
/// It never changes: rows of a lane that another version wrote must stay in it.
pub fn lane_of(key: Option<&[u8]>, event_id: Uuid, lanes: u16) -> i16 {
    let hash = hash([key.unwrap_or(event_id.as_bytes())]);
    // Below the number of lanes, which is far below `i16::MAX`.
    (hash % u32::from(lanes.max(1))) as i16
}

/// The numbers of the locks of the topics and keys of `messages`, each one once, in the order in which all writers take
/// them. Two keys may have the same number. It never changes: writers of several versions exclude each other.
pub(crate) fn locks_of(messages: &[Message]) -> Vec<i32> {
    let lock = |message: &Message| {
        let key = message.key.as_deref()?;
        Some(hash([message.topic.as_bytes(), &[0], key]).cast_signed())
    };
    messages.iter().filter_map(lock).collect::<BTreeSet<_>>().into_iter().collect()
}

/// FNV-1a with 64 bits, both halves XORed.
fn hash<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> u32 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = parts.into_iter().flatten();
    let hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    (hash ^ (hash >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_of_known_keys_never_change() {
        let lane = |key: &str| lane_of(Some(key.as_bytes()), Uuid::nil(), 64);
        assert_eq!([lane(""), lane("a"), lane("order-1"), lane("order-2")], [1, 0, 50, 11]);
        assert_eq!(lane_of(None, Uuid::from_u128(7), 64), 57);
        assert_eq!(lane_of(Some(b"order-1"), Uuid::nil(), 1), 0);
    }

    #[test]
    fn locks_are_sorted_and_those_of_known_keys_never_change() {
        let message = |(topic, key): (&str, &str)| {
            Message::new(topic.to_owned(), "").with_key(key.to_owned())
        };
        let locks = |keys: &[(&str, &str)]| {
            locks_of(&keys.iter().map(|of| message(*of)).collect::<Vec<_>>())
        };
        let (one, two) = (locks(&[("orders", "1")]), locks(&[("orders", "2")]));
        assert_eq!((&one[..], &two[..]), (&[1_859_259_691][..], &[1_859_260_134][..]));
        let both = [("orders", "2"), ("orders", "1"), ("orders", "2")];
        assert_eq!(locks(&both), [one[0].min(two[0]), one[0].max(two[0])]);
        assert!(locks_of(&[Message::new("orders", "")]).is_empty(), "no key, no order");
        assert_ne!(locks(&[("users", "1")]), one);
    }

    #[test]
    fn keys_spread_over_all_lanes() {
        let mut rows = [0_u32; 64];
        for key in 0..6_400 {
            rows[lane_of(Some(key.to_string().as_bytes()), Uuid::nil(), 64) as usize] += 1;
        }
        let (least, most) = (rows.iter().min(), rows.iter().max());
        assert!(least >= Some(&50) && most <= Some(&200), "{rows:?}");
    }
}
