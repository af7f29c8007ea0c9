//! Tests of the parked rows of a lane.

use uuid::Uuid;

use super::*;

const MOST: Capacity = Capacity { rows: 10, bytes: 10 };
const AT: LaneEpoch = LaneEpoch { lane: 0, epoch: 1 };
const NOW: Duration = Duration::ZERO;

fn row(id: i64) -> RowId {
    RowId { id, event_id: Uuid::from_u128(id as u128) }
}

fn key() -> OrderKey {
    OrderKey::Key { topic: "t".into(), key: "k".into() }
}

/// A lane whose parked rows, each of a byte, are due now.
fn lane(order: &OrderKey, ids: &[i64], effects: &mut Effects) -> Lane<i64> {
    let entry = |id: &i64| ParkedEntry {
        lane: AT.lane,
        row: row(*id),
        order: order.clone(),
        size: 1,
        attempts: 1,
        due_in: Duration::ZERO,
    };
    Lane::new(AT, ids.iter().map(entry).collect(), NOW, effects)
}

fn load(lane: &mut Lane<i64>, order: &OrderKey, effects: &mut Effects) -> Vec<i64> {
    let rows = lane.load(order, MOST, NOW).unwrap_or_default();
    let found = rows.iter().map(|row| (*row, row.id)).collect();
    lane.loaded(order, &rows, found, NOW, effects);
    rows.iter().map(|row| row.id).collect()
}

/// A late row of the key, whose move is through.
fn admit_late(lane: &mut Lane<i64>, order: &OrderKey, id: i64, effects: &mut Effects) {
    lane.admit(Entry { row: row(id), order: order.clone(), size: 1, payload: id }, effects);
    lane.removed(row(id), Table::Pending, false);
    lane.moved(order, row(id), effects);
}

#[test]
fn late_row_before_the_row_in_flight_is_loaded() {
    let (order, mut effects) = (key(), Effects::default());
    let mut lane = lane(&order, &[5], &mut effects);
    assert_eq!(load(&mut lane, &order, &mut effects), [5]);
    assert_eq!(lane.start(&order), Some((row(5), Table::Parked, 5)));
    admit_late(&mut lane, &order, 3, &mut effects);
    effects.due.clear();
    lane.returned(&order, row(5), 5, &mut effects);
    let Some(std::cmp::Reverse((_, _, due))) = effects.due.pop() else { panic!("a stall") };
    assert_eq!(lane.load(&due, MOST, NOW), Some(vec![row(3), row(5)]));
}

#[test]
fn late_row_before_loaded_rows_finds_room() {
    let (order, mut effects) = (key(), Effects::default());
    let mut lane = lane(&order, &(5..20).collect::<Vec<_>>(), &mut effects);
    assert_eq!(load(&mut lane, &order, &mut effects), (5..15).collect::<Vec<_>>(), "all the room");
    lane.start(&order).unwrap();
    admit_late(&mut lane, &order, 3, &mut effects);
    lane.confirmed(&order, row(5), NOW, &mut effects);
    assert_eq!(load(&mut lane, &order, &mut effects)[..2], [3, 6]);
    assert_eq!(lane.start(&order), Some((row(3), Table::Parked, 3)));
}

#[test]
fn late_row_between_rows_that_are_being_loaded_finds_room() {
    let (order, mut effects) = (key(), Effects::default());
    let ids: Vec<_> = [5].into_iter().chain(7..20).collect();
    let mut lane = lane(&order, &ids, &mut effects);
    let asked = lane.load(&order, MOST, NOW).unwrap();
    admit_late(&mut lane, &order, 6, &mut effects);
    let found = asked.iter().map(|row| (*row, row.id)).collect();
    lane.loaded(&order, &asked, found, NOW, &mut effects);
    lane.start(&order).unwrap();
    lane.confirmed(&order, row(5), NOW, &mut effects);
    assert_eq!(load(&mut lane, &order, &mut effects)[..2], [6, 7]);
}

#[test]
fn row_that_is_parked_again_waits_for_the_end_of_its_statement() {
    let (order, mut effects) = (key(), Effects::default());
    let mut lane = lane(&order, &[5], &mut effects);
    load(&mut lane, &order, &mut effects);
    lane.start(&order).unwrap();
    let backoff = Backoff { first: Duration::ZERO, longest: Duration::ZERO };
    lane.park(&order, row(5), "test".into(), backoff, NOW, &mut effects);
    assert_eq!(lane.load(&order, MOST, NOW), None, "its statement may still run");
    effects.due.clear();
    lane.removed(row(5), Table::Parked, false);
    lane.moved(&order, row(5), &mut effects);
    assert!(effects.due.pop().is_some());
    assert_eq!(load(&mut lane, &order, &mut effects), [5]);
}
