//! Tests of the lanes' memory, moves and reset.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::*;
use crate::relay::effects::{Late, OrderKey, Table, Target};

const AT: LaneEpoch = LaneEpoch { lane: 0, epoch: 1 };
const NOW: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// One lane, with a window of 100 rows and 100 bytes.
fn lanes(parked: Vec<ParkedEntry>) -> Lanes<i64> {
    let backoff = Backoff { first: NOW, longest: NOW };
    let mut lanes = Lanes::new(Capacity { rows: 100, bytes: 100 }, backoff, LONGEST);
    lanes.take(vec![AT], parked, NOW);
    lanes
}

fn row(id: i64) -> RowId {
    RowId { id, event_id: Uuid::from_u128(id as u128) }
}

fn order(key: &str) -> OrderKey {
    OrderKey::Key { topic: "t".into(), key: key.to_owned().into() }
}

/// A row of a key of its own.
fn entry(id: i64, size: usize) -> (i16, Entry<i64>) {
    (AT.lane, Entry { row: row(id), order: order(&id.to_string()), size, payload: id })
}

fn parked(id: i64, key: &str, size: usize) -> ParkedEntry {
    let due_in = Duration::ZERO;
    ParkedEntry { lane: AT.lane, row: row(id), order: order(key), size, attempts: 1, due_in }
}

fn hot(lanes: &mut Lanes<i64>, rows: Vec<(i16, Entry<i64>)>) -> ReadStep {
    lanes.hot_rows(ReadAnswer { rows, lost: Vec::new(), late: Late::None })
}

/// Publishes, confirms and deletes all that is ready.
fn publish_all(lanes: &mut Lanes<i64>) -> Vec<i64> {
    let mut published = Vec::new();
    while let Some(publish) = lanes.next_publish() {
        published.push(publish.row.id);
        lanes.published(&publish, Outcome::Confirmed, NOW);
    }
    let deletes = lanes.take_deletes(usize::MAX);
    lanes.deleted(&deletes);
    published
}

fn bytes_to_read(lanes: &mut Lanes<i64>) -> Option<usize> {
    match lanes.start_read() {
        ReadStep::Hot(reads) => Some(reads[0].bytes),
        _ => None,
    }
}

#[test]
fn read_is_bound_by_the_bytes_that_are_held() {
    let mut lanes = lanes(Vec::new());
    assert_eq!(bytes_to_read(&mut lanes), Some(100));
    hot(&mut lanes, vec![entry(1, 60), entry(2, 50)]);
    lanes.wake();
    assert_eq!(bytes_to_read(&mut lanes), None, "no room");
    assert_eq!(publish_all(&mut lanes), [1, 2]);
    assert_eq!(bytes_to_read(&mut lanes), Some(100), "the last read was cut, so there is more");
}

#[test]
fn late_rows_beyond_the_room_wait_and_the_hot_ones_too() {
    let mut lanes = lanes(Vec::new());
    lanes.start_read();
    hot(&mut lanes, vec![entry(100, 10)]);
    publish_all(&mut lanes);
    lanes.sweep();
    lanes.start_read();
    let ReadStep::Ids(_) = hot(&mut lanes, vec![entry(101, 30)]) else { panic!("a late read") };
    let late = |id, size| LateRow { row: row(id), size };
    let rows = [late(1, 60), late(2, 60), late(3, 60)].map(|late| (AT.lane, late)).into();
    let step = lanes.late_ids(ReadAnswer { rows, lost: Vec::new(), late: Late::None });
    assert_eq!(step, ReadStep::Rows(vec![(AT, row(1)), (AT, row(2))]));
    let rows = vec![entry(1, 60), entry(2, 60)];
    lanes.late_rows(ReadAnswer { rows, lost: Vec::new(), late: Late::None });
    assert_eq!(publish_all(&mut lanes), [1, 2]);
    let ReadStep::Hot(reads) = lanes.start_read() else { panic!("a read") };
    assert_eq!(reads[0].above, 100, "the hot rows are read again");
    let ReadStep::Ids(ranges) = hot(&mut lanes, vec![entry(101, 30)]) else { panic!("late rows") };
    assert_eq!((ranges[0].above, ranges[0].up_to), (2, 100));
}

#[test]
fn parked_rows_are_loaded_within_the_window() {
    let many = [parked(1, "a", 40), parked(2, "a", 40), parked(3, "a", 40), parked(4, "b", 500)];
    let mut lanes = lanes(many.to_vec());
    let first = lanes.next_load(NOW).unwrap();
    assert_eq!(first.rows, [row(1), row(2)]);
    lanes.loaded(&first, Some(HashMap::from([(row(1), 1), (row(2), 2)])), NOW);
    assert_eq!(lanes.next_load(NOW), None, "a row of 500 bytes waits");
    let publish = lanes.next_publish().unwrap();
    lanes.published(&publish, Outcome::Confirmed, NOW);
    let publish = lanes.next_publish().unwrap();
    assert_eq!((publish.row, publish.table), (row(2), Table::Parked));
    lanes.published(&publish, Outcome::Confirmed, NOW);
    // Alone, whatever its size.
    let second = lanes.next_load(NOW).unwrap();
    assert_eq!(second.rows, [row(4)]);
    lanes.loaded(&second, Some(HashMap::from([(row(4), 4)])), NOW);
    assert_eq!(lanes.next_load(NOW), None);
    lanes.wake();
    assert_eq!(lanes.start_read(), ReadStep::End, "no room to read");
    let publish = lanes.next_publish().unwrap();
    assert_eq!(publish.row, row(4));
    lanes.published(&publish, Outcome::Confirmed, NOW);
    assert_eq!(lanes.next_load(NOW).unwrap().rows, [row(3)]);
}

/// Rows 1 and 2 of the key `a` and row 3 of the key `b`, whose publish failed.
fn failed() -> Lanes<i64> {
    let mut lanes = lanes(Vec::new());
    lanes.start_read();
    let rows = [(1, "a"), (2, "a"), (3, "b")].map(|(id, key)| {
        (AT.lane, Entry { row: row(id), order: order(key), size: 1, payload: id })
    });
    hot(&mut lanes, rows.into());
    while let Some(publish) = lanes.next_publish() {
        lanes.published(&publish, Outcome::Failed("test".into()), NOW);
    }
    lanes
}

fn ids(moves: &[Move]) -> Vec<i64> {
    moves.iter().map(|of| of.row.id).collect()
}

#[test]
fn refused_move_goes_behind_those_of_other_keys() {
    let mut lanes = failed();
    let first = lanes.take_moves(1);
    assert_eq!(ids(&first), [1]);
    lanes.postpone(first[0].clone());
    let rest = lanes.take_moves(10);
    assert_eq!(ids(&rest), [3, 1, 2], "the order of a key stays");
}

#[test]
fn failed_moves_are_made_again_in_order() {
    let mut lanes = failed();
    let moves = lanes.take_moves(2);
    lanes.not_moved(moves);
    let moves = lanes.take_moves(10);
    assert_eq!(ids(&moves), [1, 2, 3]);
    assert_eq!((moves[0].attempts, moves[1].attempts), (1, 0));
    assert_eq!((moves[0].to, moves[1].to), (Target::Parked(NOW), Target::Parked(Duration::ZERO)));
}

#[test]
fn reset_reads_all_again_and_admits_no_row_twice() {
    let mut lanes = lanes(Vec::new());
    lanes.start_read();
    hot(&mut lanes, vec![entry(1, 1), entry(2, 1)]);
    lanes.reset();
    let ReadStep::Hot(reads) = lanes.start_read() else { panic!("a read") };
    assert_eq!(reads[0].above, i64::MIN);
    hot(&mut lanes, vec![entry(1, 1), entry(2, 1), entry(3, 1)]);
    assert_eq!(publish_all(&mut lanes), [1, 2, 3]);
}

#[test]
fn read_that_took_too_long_is_made_again_with_its_late_rows() {
    let mut lanes = lanes(Vec::new());
    lanes.start_read();
    hot(&mut lanes, vec![entry(100, 10)]);
    publish_all(&mut lanes);
    lanes.sweep();
    lanes.start_read();
    let ReadStep::Ids(_) = hot(&mut lanes, Vec::new()) else { panic!("a late read") };
    let rows = vec![(AT.lane, LateRow { row: row(1), size: 1 })];
    let step = lanes.late_ids(ReadAnswer { rows, lost: Vec::new(), late: Late::None });
    assert_eq!(step, ReadStep::Rows(vec![(AT, row(1))]));
    lanes.read_timed_out();
    let ReadStep::Hot(reads) = lanes.start_read() else { panic!("a read") };
    assert_eq!((reads[0].above, reads[0].limit, reads[0].bytes), (100, 50, 50));
    let ReadStep::Ids(ranges) = hot(&mut lanes, Vec::new()) else { panic!("a late read") };
    assert_eq!((ranges[0].above, ranges[0].up_to), (i64::MIN, 100));
}

#[test]
fn read_starts_behind_the_last_lane_that_was_read() {
    let backoff = Backoff { first: NOW, longest: NOW };
    let mut lanes = Lanes::<i64>::new(Capacity { rows: 100, bytes: 100 }, backoff, LONGEST);
    lanes.take((0..4).map(|lane| LaneEpoch { lane, epoch: 1 }).collect(), Vec::new(), NOW);
    lanes.reader.part.timed_out();
    let mut read = Vec::new();
    for _ in 0..3 {
        lanes.wake();
        let ReadStep::Hot(reads) = lanes.start_read() else { panic!("a read") };
        read.push(reads.iter().map(|of| of.lane.lane).collect::<Vec<_>>());
        hot(&mut lanes, Vec::new());
    }
    assert_eq!(read, [[0, 1], [2, 3], [0, 1]]);
}

/// A hot read of a database that tells no snapshots, at a time in seconds.
fn timed(lanes: &mut Lanes<i64>, start: Instant, at: u64, ids: &[i64]) -> ReadStep {
    lanes.wake();
    let ReadStep::Hot(_) = lanes.start_read() else { panic!("a read") };
    let rows = ids.iter().map(|id| entry(*id, 1)).collect();
    let began = start + Duration::from_secs(at);
    lanes.hot_rows(ReadAnswer { rows, lost: Vec::new(), late: Late::Between(began, began) })
}

/// The answer to the late read of such a hot read.
fn timed_ids(lanes: &mut Lanes<i64>, ids: &[i64]) -> ReadStep {
    let rows = ids.iter().map(|id| (AT.lane, LateRow { row: row(*id), size: 1 })).collect();
    lanes.late_ids(ReadAnswer { rows, lost: Vec::new(), late: Late::None })
}

#[test]
fn lane_without_rows_does_not_lengthen_late_reads() {
    let (mut lanes, start) = (lanes(Vec::new()), Instant::now());
    lanes.take(vec![LaneEpoch { lane: 1, epoch: 1 }], Vec::new(), NOW);
    let mut above = Vec::new();
    for second in 0..100 {
        let id = i64::try_from(second).unwrap();
        let ReadStep::Ids(ranges) = timed(&mut lanes, start, second, &[id]) else {
            panic!("a late read")
        };
        above.push(ranges[0].above);
        assert_eq!(timed_ids(&mut lanes, &[id]), ReadStep::End);
        publish_all(&mut lanes);
    }
    assert_eq!(above[60], i64::MIN);
    assert_eq!(above[99], 38, "the last read below began at 98, and a row may be 60 s old");
    lanes.reset();
    let ReadStep::Ids(ranges) = timed(&mut lanes, start, 100, &[100]) else {
        panic!("a late read")
    };
    assert_eq!(ranges[0].above, i64::MIN);
}

#[test]
fn row_that_a_torn_read_misses_goes_first() {
    let (mut lanes, start) = (lanes(Vec::new()), Instant::now());
    let of_key = |id: i64| {
        let (lane, of) = entry(id, 1);
        (lane, Entry { order: order("k"), ..of })
    };
    for (ids, missed) in [([110, 120], 105), ([130, 140], 135)] {
        lanes.wake();
        let ReadStep::Hot(_) = lanes.start_read() else { panic!("a read") };
        let rows = ids.into_iter().map(of_key).collect();
        let late = Late::Between(start, start);
        let step = lanes.hot_rows(ReadAnswer { rows, lost: Vec::new(), late });
        let ReadStep::Ids(ranges) = step else { panic!("a late read") };
        assert_eq!(ranges[0].up_to, ids[1]);
        let mut all = [ids[0], ids[1], missed];
        all.sort_unstable();
        let step = timed_ids(&mut lanes, &all);
        assert_eq!(step, ReadStep::Rows(vec![(AT, row(missed))]), "not those of the hot read");
        let rows = vec![of_key(missed)];
        lanes.late_rows(ReadAnswer { rows, lost: Vec::new(), late: Late::None });
        assert_eq!(publish_all(&mut lanes), all);
    }
}
