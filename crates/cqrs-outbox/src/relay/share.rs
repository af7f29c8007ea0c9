//! The fair share of the lanes of each live relay.

use uuid::Uuid;

/// The number of lanes that `relay` should own, if `live` relays share `lanes`: the shares of all add up to
/// `lanes` and differ by at most one. 0 if it is not among them.
pub(super) fn fair_share(lanes: usize, live: &[Uuid], relay: Uuid) -> usize {
    if !live.contains(&relay) {
        return 0;
    }
    let rank = live.iter().filter(|other| **other < relay).count();
    lanes / live.len() + usize::from(rank < lanes % live.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_differ_by_one() {
        for count in 1..=70_u128 {
            let live: Vec<_> = (0..count).map(|n| Uuid::from_u128(n * 7 % 71)).collect();
            for lanes in [1, 64] {
                let shares = live.iter().map(|relay| fair_share(lanes, &live, *relay));
                let shares: Vec<_> = shares.collect();
                assert_eq!(shares.iter().sum::<usize>(), lanes, "{count}");
                let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
                assert!(most - least <= 1, "{count}: {shares:?}");
            }
        }
        assert_eq!(fair_share(64, &[Uuid::from_u128(1)], Uuid::from_u128(2)), 0);
    }
}
