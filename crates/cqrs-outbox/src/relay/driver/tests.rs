//! Tests of the driver with a database that the test scripts.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cqrs_core::{MemoryBroker, Message};

use super::*;
use crate::relay::effects::{
    Delete, LaneEpoch, LaneRange, LaneRead, Late, LateRow, Load, OrderKey, ReadAnswer, RowId,
    Table, Target,
};
use crate::relay::lane::{Entry, ParkedEntry};
use crate::relay::store::ReadEntry;

const AT: LaneEpoch = LaneEpoch { lane: 0, epoch: 1 };

/// Refuses each batch that moves row 2, reads the parked rows of up to 4 lanes, ends, and answers
/// nothing else.
#[derive(Default)]
struct Scripted {
    /// The rows of each batch.
    moved: Mutex<Vec<Vec<i64>>>,
    /// What a release waits for.
    connection: tokio::sync::Mutex<()>,
    /// How often its connections were forgotten.
    forgotten: AtomicUsize,
}

fn lane(lane: i16) -> LaneEpoch {
    LaneEpoch { lane, epoch: 1 }
}

async fn nothing<T>() -> Result<T, OutboxError> {
    std::future::pending().await
}

impl Store for Scripted {
    async fn heartbeat(&self) -> Result<View, OutboxError> {
        nothing().await
    }

    async fn take(&self, _: &[Uuid], most: usize) -> Result<Vec<LaneEpoch>, OutboxError> {
        Ok((0..20).map(lane).take(most).collect())
    }

    async fn parked(&self, lanes: &[LaneEpoch]) -> Result<Vec<ParkedEntry>, OutboxError> {
        match lanes.len() <= 4 {
            true => Ok(Vec::new()),
            false => nothing().await,
        }
    }

    async fn release(&self, _: &[LaneEpoch]) -> Result<(), OutboxError> {
        drop(self.connection.lock().await);
        Ok(())
    }

    async fn leave(&self) -> Result<(), OutboxError> {
        Ok(())
    }

    async fn hot(&self, _: &[LaneRead]) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        nothing().await
    }

    async fn ids(&self, _: &[LaneRange]) -> Result<ReadAnswer<LateRow>, OutboxError> {
        nothing().await
    }

    async fn rows(&self, _: &[(LaneEpoch, RowId)]) -> Result<ReadAnswer<ReadEntry>, OutboxError> {
        nothing().await
    }

    async fn delete(&self, _: &[Delete]) -> Result<Option<u64>, OutboxError> {
        nothing().await
    }

    async fn change(&self, moves: &[Move]) -> Result<Vec<i16>, OutboxError> {
        let ids: Vec<_> = moves.iter().map(|of| of.row.id).collect();
        let is_refused = ids.contains(&2);
        self.moved.lock().unwrap().push(ids);
        match is_refused {
            true => Err(OutboxError::database("the test", sqlx::Error::RowNotFound)),
            false => Ok(vec![AT.lane]),
        }
    }

    async fn load(&self, _: &Load) -> Result<HashMap<RowId, Payload>, OutboxError> {
        nothing().await
    }

    fn forget_connections(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    async fn notify(&self) -> Result<(), OutboxError> {
        nothing().await
    }
}

/// A driver that owns a lane.
fn driver() -> Driver<Scripted> {
    let broker = Arc::new(MemoryBroker::new());
    let (store, progress) = (Arc::new(Scripted::default()), Arc::new(Progress::default()));
    let mut driver = Driver::new(store, Uuid::nil(), broker, Settings::default(), progress);
    driver.lanes.take(vec![AT], Vec::new(), Duration::ZERO);
    driver
}

/// A read that found these rows, each with a key of its own.
fn found(ids: &[i64]) -> Done {
    let entry = |id: &i64| {
        let row = RowId { id: *id, event_id: Uuid::from_u128(*id as u128) };
        let order = OrderKey::Key { topic: "t".into(), key: id.to_string().into() };
        (AT.lane, Entry { row, order, size: 1, payload: Ok(Message::new("t", "")) })
    };
    let rows = ids.iter().map(entry).collect();
    Done::Hot(Ok(ReadAnswer { rows, lost: Vec::new(), late: Late::None }))
}

fn away() -> OutboxError {
    OutboxError::database("the test", sqlx::Error::PoolClosed)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn refused_batch_is_moved_row_by_row() {
    let mut driver = driver();
    driver.start_read(Duration::ZERO);
    driver.done(found(&[1, 2, 3]));
    while let Some(publish) = driver.lanes.next_publish() {
        let outcome = Outcome::Failed("the test".into());
        driver.lanes.published(&publish, outcome, Duration::ZERO);
    }
    // The read of the scripted database never ends.
    driver.statements = Statements::new(seconds(30));
    for _ in 0..5 {
        driver.start_move(driver.now());
        let done = driver.statements.next().await.unwrap();
        driver.done(done);
        tokio::time::advance(seconds(10)).await;
    }
    let moved = driver.store.moved.lock().unwrap().clone();
    assert_eq!(moved, [vec![1, 2, 3], vec![1], vec![2], vec![3], vec![2]]);
    assert!(driver.statements.is_away(Kind::Move), "one outage, and one line in the log");
}

#[tokio::test(start_paused = true)]
async fn outage_during_a_read_is_followed_by_a_reset() {
    let mut driver = driver();
    driver.start_read(Duration::ZERO);
    driver.done(Done::Notified(Err(away())));
    assert!(driver.needs_reset && driver.lanes.is_reading(), "the read goes on");
    driver.done(found(&[7]));
    assert!(!driver.needs_reset);
    driver.lanes.wake();
    let ReadStep::Hot(reads) = driver.lanes.start_read() else { panic!("a read") };
    assert_eq!(reads[0].above, i64::MIN, "all is read again");
}

#[tokio::test(start_paused = true)]
async fn refusal_of_the_database_forgets_no_read() {
    let mut driver = driver();
    driver.start_read(Duration::ZERO);
    driver.done(found(&[7]));
    let refused = OutboxError::database("the test", sqlx::Error::RowNotFound);
    driver.done(Done::Notified(Err(refused)));
    driver.lanes.wake();
    let ReadStep::Hot(reads) = driver.lanes.start_read() else { panic!("a read") };
    assert_eq!(reads[0].above, 7);
}

#[tokio::test(start_paused = true)]
async fn relay_wakes_for_the_first_thing_that_is_due() {
    let mut driver = driver();
    let millis = Duration::from_millis;
    (driver.heartbeat_at, driver.is_stopping) = (seconds(10), true);
    assert_eq!(driver.wake_at(seconds(2), None), seconds(3), "at least once a second");
    driver.heartbeat_at = millis(2_900);
    assert_eq!(driver.wake_at(seconds(2), None), millis(2_900));
    driver.delete_at = Some(millis(2_800));
    assert_eq!(driver.wake_at(seconds(2), None), millis(2_800));
    (driver.notify_at, driver.wants_notify) = (millis(2_700), true);
    assert_eq!(driver.wake_at(seconds(2), None), millis(2_800), "no notification is due");
    driver.has_peers = true;
    assert_eq!(driver.wake_at(seconds(2), None), millis(2_700));
    driver.statements.failed(Kind::Delete, millis(2_500), "away");
    assert_eq!(driver.wake_at(seconds(2), None), millis(2_600), "the next attempt");
    assert_eq!(driver.wake_at(seconds(2), Some(millis(2_550))), millis(2_550), "the drain");
    // What is overdue waits for an answer.
    assert_eq!(driver.wake_at(millis(2_600), None), millis(2_700));
    driver.is_stopping = false;
    driver.reads.start(millis(2_400));
    assert_eq!(driver.wake_at(millis(2_600), None), millis(2_650), "the poll");
}

fn too_long() -> OutboxError {
    OutboxError::no_answer("the test", seconds(30))
}

#[tokio::test(start_paused = true)]
async fn lanes_are_taken_in_parts_that_end_in_time() {
    let mut driver = driver();
    driver.lanes.lose(AT);
    let mut owner = None;
    for _ in 0..20 {
        let lanes = (0..20).map(|of| (lane(of), owner)).collect();
        let view = View { live: vec![Uuid::nil()], lanes, xid: None };
        driver.done(Done::Seen(0, Ok(view)));
        owner = Some(Uuid::nil());
        while let Some(done) = driver.statements.next().await {
            driver.done(done);
        }
        tokio::time::advance(seconds(10)).await;
    }
    assert_eq!(driver.lanes.owned().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn read_that_takes_too_long_goes_on_where_it_was() {
    let mut driver = driver();
    driver.lanes.take((1..4).map(lane).collect(), Vec::new(), Duration::ZERO);
    driver.start_read(Duration::ZERO);
    driver.done(found(&[7]));
    for lanes in [2, 1, 1] {
        driver.done(Done::Seen(0, Err(too_long())));
        driver.lanes.wake();
        driver.lanes.start_read();
        driver.done(Done::Hot(Err(too_long())));
        driver.lanes.wake();
        let ReadStep::Hot(reads) = driver.lanes.start_read() else { panic!("a read") };
        assert_eq!(reads.len(), lanes);
        let of_first = reads.iter().find(|read| read.lane == AT);
        assert!(of_first.is_none_or(|read| read.above == 7), "nothing is forgotten");
        driver.done(found(&[]));
    }
}

#[tokio::test(start_paused = true)]
async fn end_waits_for_the_statement_that_has_the_connection() {
    let mut driver = driver();
    let store = Arc::clone(&driver.store);
    let (started, is_running) = (Instant::now(), Arc::new(Notify::new()));
    let runs = Arc::clone(&is_running);
    driver.statements.start(Kind::Notify, async move {
        let _lent = store.connection.lock().await;
        runs.notify_one();
        tokio::time::sleep(seconds(1)).await;
        Done::Notified(Ok(()))
    });
    tokio::select! {
        _ = driver.statements.next() => panic!("it still runs"),
        () = is_running.notified() => {}
    }
    driver.end().await;
    assert_eq!(started.elapsed(), seconds(1));
}

#[tokio::test(start_paused = true)]
async fn outage_of_the_moves_ends_with_the_last_refused_one() {
    let mut driver = driver();
    let moves = |ids: &[i64]| -> Vec<_> { ids.iter().map(|id| moved(*id)).collect() };
    let refused = || Err(OutboxError::database("the test", sqlx::Error::RowNotFound));
    driver.done(Done::Moved(moves(&[2]), refused()));
    driver.done(Done::Moved(moves(&[1, 3]), Ok(vec![AT.lane])));
    assert!(driver.statements.is_away(Kind::Move), "row 2 is left");
    driver.done(Done::Moved(moves(&[2]), Ok(vec![AT.lane])));
    assert!(!driver.statements.is_away(Kind::Move));
}

fn moved(id: i64) -> Move {
    let row = RowId { id, event_id: Uuid::from_u128(id as u128) };
    let (order, to) = (OrderKey::Row(row), Target::Dead);
    let (from, error) = (Table::Pending, "the test".into());
    Move { lane: AT, row, order, from, to, attempts: 1, error }
}

#[tokio::test(start_paused = true)]
async fn longest_times_are_no_overflow() {
    let mut driver = driver();
    let settings = Settings { drain: Duration::MAX, ..Settings::default() };
    (driver.settings, driver.started) = (settings, Instant::now() - seconds(1));
    driver.lanes.lose(AT);
    let stop = CancellationToken::new();
    stop.cancel();
    let (_written, written) = watch::channel(());
    driver.run(stop, written, Arc::new(Notify::new())).await;
    let longest = Duration::MAX;
    let settings =
        Settings { poll: longest, idle_poll: longest, sweep: longest, ..Settings::default() };
    let mut times = ReadTimes::new(&settings);
    times.start(seconds(1));
    assert_eq!(times.next(), Duration::MAX);
}

#[tokio::test]
async fn outage_ends_all_connections() {
    let mut driver = driver();
    let refused = OutboxError::database("the test", sqlx::Error::RowNotFound);
    let away = || OutboxError::database("the test", sqlx::Error::WorkerCrashed);
    let late = OutboxError::no_answer("the test", Duration::from_secs(1));
    for (error, forgotten) in [(refused, 0), (away(), 1), (late, 2)] {
        driver.done(Done::Seen(0, Err(error)));
        assert_eq!(driver.store.forgotten.load(Ordering::Relaxed), forgotten);
    }
    driver.done(Done::Notified(Err(away())));
    assert_eq!(driver.store.forgotten.load(Ordering::Relaxed), 3);
}
