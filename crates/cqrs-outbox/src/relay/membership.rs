//! The change of a relay's lanes after a heartbeat: what it lost, gives up and takes; used by its driver.

use uuid::Uuid;

use super::effects::LaneEpoch;
use super::share::fair_share;
use super::store::View;

/// The way from the lanes that a relay has to those that it should have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Owned by others now.
    pub(super) lost: Vec<LaneEpoch>,
    /// The number of lanes to give up.
    pub(super) surplus: usize,
    /// Owned, and taken by a statement whose answer was lost.
    pub(super) unknown: Vec<LaneEpoch>,
    /// The number of lanes to take, from nobody or from relays that are [dead](Self::dead).
    pub(super) missing: usize,
    pub(super) dead: Vec<Uuid>,
}

impl Plan {
    /// `true` if there are lanes to take.
    pub(super) fn takes(&self) -> bool {
        !self.unknown.is_empty() || self.missing > 0
    }
}

/// The plan of `relay`, which knows that it owns the lanes `mine`, and of these releases `draining` already.
pub(super) fn plan(view: &View, relay: Uuid, mine: &[LaneEpoch], draining: usize) -> Plan {
    let owned = view.lanes.iter().filter(|(_, owner)| *owner == Some(relay));
    let owned: Vec<_> = owned.map(|(at, _)| *at).collect();
    let lost = mine.iter().copied().filter(|at| !owned.contains(at)).collect();
    let share = fair_share(view.lanes.len(), &view.live, relay);
    let surplus = (owned.len() - draining.min(owned.len())).saturating_sub(share);
    let owners = view.lanes.iter().filter_map(|(_, owner)| *owner);
    let mut dead: Vec<_> = owners.filter(|owner| !view.live.contains(owner)).collect();
    dead.sort_unstable();
    dead.dedup();
    let has_free = view.lanes.iter().any(|(_, owner)| owner.is_none()) || !dead.is_empty();
    let missing = if has_free { share.saturating_sub(owned.len()) } else { 0 };
    let unknown = owned.into_iter().filter(|at| !mine.contains(at)).collect();
    Plan { lost, surplus, unknown, missing, dead }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn lane(lane: i16) -> LaneEpoch {
        LaneEpoch { lane, epoch: 1 }
    }

    fn view(live: &[Uuid], owners: &[Option<Uuid>]) -> View {
        let lanes = (0..).zip(owners).map(|(at, owner)| (lane(at), *owner)).collect();
        View { live: live.to_vec(), lanes, xid: None }
    }

    #[test]
    fn free_lanes_and_those_of_the_dead_are_taken() {
        let view = view(&[ME], &[Some(OTHER), None, Some(ME), Some(OTHER)]);
        let plan = plan(&view, ME, &[lane(2)], 0);
        assert_eq!(plan, Plan { missing: 3, dead: vec![OTHER], ..Plan::default() });
        assert!(plan.takes());
    }

    #[test]
    fn lanes_of_a_live_relay_are_not_taken() {
        let view = view(&[ME, OTHER], &[Some(OTHER), Some(OTHER)]);
        assert_eq!(plan(&view, ME, &[], 0), Plan::default());
    }

    #[test]
    fn surplus_is_given_up_once() {
        let view = view(&[ME, OTHER], &[Some(ME), Some(ME), Some(ME), Some(ME)]);
        let mine = [lane(0), lane(1), lane(2), lane(3)];
        assert_eq!(plan(&view, ME, &mine, 0).surplus, 2);
        assert_eq!(plan(&view, ME, &mine, 2).surplus, 0);
    }

    #[test]
    fn lost_and_unknown_lanes_are_told_apart() {
        let view = view(&[ME, OTHER], &[Some(ME), Some(OTHER)]);
        let plan = plan(&view, ME, &[lane(1)], 0);
        assert_eq!((plan.lost, plan.unknown), (vec![lane(1)], vec![lane(0)]));
    }
}
