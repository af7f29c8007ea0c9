//! The lane of a row: computed by writers, owned by relays.

use uuid::Uuid;

/// The lane, from 0 to `lanes - 1`, of a message with this key; without a key, of this event id.
///
/// The rows of one key are in one lane. The hash is FNV-1a with 64 bits, both halves XORed, modulo `lanes`.
/// It never changes: rows of a lane that another version wrote must stay in it.
pub fn lane_of(key: Option<&[u8]>, event_id: Uuid, lanes: u16) -> i16 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = key.unwrap_or(event_id.as_bytes());
    let hash =
        bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    // Below the number of lanes, which is far below `i16::MAX`.
    ((hash ^ (hash >> 32)) as u32 % u32::from(lanes.max(1))) as i16
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
    fn keys_spread_over_all_lanes() {
        let mut rows = [0_u32; 64];
        for key in 0..6_400 {
            rows[lane_of(Some(key.to_string().as_bytes()), Uuid::nil(), 64) as usize] += 1;
        }
        let (least, most) = (rows.iter().min(), rows.iter().max());
        assert!(least >= Some(&50) && most <= Some(&200), "{rows:?}");
    }
}
