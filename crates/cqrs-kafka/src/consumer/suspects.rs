//! Handing out the suspects of a crash, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::lane::Lane;
use super::partition::Partition;
use super::record::Record;
use super::shared::Shared;

/// How long the next suspect is waited for: the fence lies ahead of what there is.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long suspects are handed out alone. Then everything goes on as ever: what was not reached is found
/// after later deaths, which begin behind what was cleared.
const LIMIT: Duration = Duration::from_secs(30);

/// Which [`Suspects`] of this process hands out; 0: none. Two at once would blame each other's.
static TURN: AtomicUsize = AtomicUsize::new(0);
static IDS: AtomicUsize = AtomicUsize::new(1);

/// The suspects of one session. While there are some, nothing else of it is handed out.
#[derive(Debug)]
pub(super) struct Suspects {
    id: usize,
    /// The one whose start is to be committed, or that is out.
    current: Option<Current>,
    /// Since when no further one was found; `None` while there are none.
    silent: Option<Instant>,
    /// Since when they are handed out.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Current {
    partition: Arc<Partition>,
    offset: i64,
    /// `None`: it was handed out.
    record: Option<Record>,
}

impl Suspects {
    pub(super) fn new() -> Self {
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        Self { id, current: None, silent: None, since: None }
    }

    /// Goes on with the suspects of `lanes`. `false`: there are none (any more).
    pub(super) fn pump(&mut self, lanes: &mut [Lane], shared: &Shared) -> bool {
        if !lanes.iter().any(|lane| lane.suspects_until.is_some()) {
            (self.silent, self.since) = (None, None);
            self.release();
            return false;
        }
        let silent = *self.silent.get_or_insert_with(Instant::now);
        let mine = TURN.compare_exchange(0, self.id, Ordering::AcqRel, Ordering::Acquire);
        if mine.is_err_and(|other| other != self.id) {
            self.silent = Some(Instant::now());
            return true;
        }
        if let Some(current) = &mut self.current {
            if current.partition.is_revoked() || !current.partition.is_alone(current.offset) {
                self.current = None;
                self.silent = Some(Instant::now());
            } else {
                if current.record.is_some() && current.partition.alone_is_committed() {
                    let of = |lane: &&Lane| Arc::ptr_eq(&lane.partition, &current.partition);
                    let record = current.record.take();
                    if let Some((lane, record)) = lanes.iter().find(of).zip(record) {
                        lane.hand_out_one(shared, record);
                    }
                }
                return true;
            }
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() > LIMIT {
            lanes.iter_mut().for_each(Self::clear);
            return true;
        }
        let lane = lanes.iter_mut().find(|lane| lane.suspects_until.is_some());
        let Some((lane, until)) = lane.and_then(|lane| lane.suspects_until.map(|end| (lane, end)))
        else {
            return true;
        };
        match lane.next() {
            Some(record) if record.offset < until => {
                let partition = Arc::clone(&lane.partition);
                partition.start_alone(record.offset);
                self.current =
                    Some(Current { partition, offset: record.offset, record: Some(record) });
            }
            Some(record) => {
                lane.put_back(record);
                Self::clear(lane);
                self.silent = Some(Instant::now());
            }
            // A copy whose time has not come holds nobody up.
            None if lane.due().is_some() || silent.elapsed() > PATIENCE => Self::clear(lane),
            None => {}
        }
        true
    }

    /// Whether a start waits for its commit.
    pub(super) fn wants_commit(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.record.is_some())
    }

    fn clear(lane: &mut Lane) {
        if lane.suspects_until.take().is_some() {
            lane.partition.clear_suspects();
        }
    }

    fn release(&self) {
        if TURN.load(Ordering::Relaxed) == self.id {
            let _ = TURN.compare_exchange(self.id, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl Drop for Suspects {
    fn drop(&mut self) {
        self.release();
    }
}
