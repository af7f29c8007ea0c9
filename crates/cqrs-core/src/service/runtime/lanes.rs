//! The lanes of a subscription: one queue per key, and the jobs that are ready or held.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use tokio::time::Instant;

/// The id of a lane: a hash of topic and key. Two keys with one hash share a lane: they lose parallelism,
/// not order.
pub(super) type LaneId = u64;

/// The most empty queues that are kept, and the largest: about those of one fetch.
const MOST_SPARE: usize = 128;

/// The jobs that wait for a worker. Jobs of one lane run one after the other, those of different lanes in
/// parallel.
///
/// # Invariants
/// 1. A lane is in `lanes` exactly while one of its jobs is ready, taken or held; its value has the later
///    jobs, in order of arrival.
/// 2. At most one job of a lane is ready or held, or some are taken, all by one worker that runs them one
///    after the other. So they run in order of arrival. No job of a lane overtakes a held one.
/// 3. A job without a lane is ready at once, and no other job waits for it.
/// 4. A worker puts back the jobs that it took and did not start ([`put_back`](Self::put_back)). It ends
///    the others by exactly one of [`done`](Self::done) and [`hold`](Self::hold).
#[derive(Debug)]
pub(super) struct Lanes<J> {
    lanes: HashMap<LaneId, Run<J>, BuildHasherDefault<IsHash>>,
    /// The empty queues of lanes that ended, for the next ones.
    spare: Vec<Run<J>>,
    ready: Run<J>,
    held: BTreeMap<(Instant, u64), Placed<J>>,
    holds: u64,
}

/// Jobs that one worker took, to run one after the other. Jobs of one lane are adjacent.
pub(super) type Run<J> = VecDeque<Placed<J>>;

/// A job and its lane.
#[derive(Debug)]
pub(super) struct Placed<J> {
    pub(super) lane: Option<LaneId>,
    pub(super) job: J,
}

impl<J> Default for Lanes<J> {
    fn default() -> Self {
        Self {
            lanes: HashMap::default(),
            spare: Vec::new(),
            ready: VecDeque::new(),
            held: BTreeMap::new(),
            holds: 0,
        }
    }
}

impl<J> Lanes<J> {
    /// Adds a job at the end of its lane.
    pub(super) fn push(&mut self, lane: Option<LaneId>, job: J) {
        if let Some(lane) = lane {
            if let Some(waiting) = self.lanes.get_mut(&lane) {
                waiting.push_back(Placed { lane: Some(lane), job });
                return;
            }
            self.lanes.insert(lane, self.spare.pop().unwrap_or_default());
        }
        self.ready.push_back(Placed { lane, job });
    }

    /// Adds jobs at the end of one lane.
    pub(super) fn push_all(&mut self, lane: LaneId, mut jobs: impl Iterator<Item = J>) {
        let Some(first) = jobs.next() else { return };
        self.push(Some(lane), first);
        if let Some(waiting) = self.lanes.get_mut(&lane) {
            waiting.extend(jobs.map(|job| Placed { lane: Some(lane), job }));
        }
    }

    /// Adds to `run`, up to `max` in all, the jobs that have been ready longest, each followed by the next
    /// jobs of its lane.
    pub(super) fn take(&mut self, run: &mut Run<J>, max: usize) {
        while run.len() < max
            && let Some(placed) = self.ready.pop_front()
        {
            let lane = placed.lane;
            run.push_back(placed);
            let Some(waiting) = lane.and_then(|lane| self.lanes.get_mut(&lane)) else { continue };
            // All of them together are copied at once.
            match max - run.len() {
                room if waiting.len() <= room => run.append(waiting),
                room => run.extend(waiting.drain(..room)),
            }
        }
    }

    /// Puts back the jobs of a run that were not started; `running` is the lane of the job before them.
    pub(super) fn put_back(&mut self, running: Option<LaneId>, run: &mut Run<J>) {
        while let Some(placed) = run.pop_back() {
            let before = run.back().map_or(running, |placed| placed.lane);
            let lane = placed.lane.filter(|_| placed.lane == before);
            match lane.and_then(|lane| self.lanes.get_mut(&lane)) {
                Some(waiting) => waiting.push_front(placed),
                None => self.ready.push_front(placed),
            }
        }
    }

    /// Ends the taken jobs of `lane`: its next job, if there is one, becomes ready.
    pub(super) fn done(&mut self, lane: LaneId) {
        let Some(waiting) = self.lanes.get_mut(&lane) else { return };
        match waiting.pop_front() {
            Some(placed) => self.ready.push_back(placed),
            None => {
                let spare = self.lanes.remove(&lane);
                if let Some(spare) = spare.filter(|queue| queue.capacity() <= MOST_SPARE)
                    && self.spare.len() < MOST_SPARE
                {
                    self.spare.push(spare);
                }
            }
        }
    }

    /// Holds a taken job until `until`. `true` if it is due before all other held jobs.
    pub(super) fn hold(&mut self, lane: Option<LaneId>, job: J, until: Instant) -> bool {
        self.holds += 1;
        let at = (until, self.holds);
        self.held.insert(at, Placed { lane, job });
        self.held.first_key_value().is_some_and(|(first, _)| *first == at)
    }

    /// Makes the held jobs ready that are due at `now`. Returns the time at which the next one is due.
    pub(super) fn release(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.held.first_entry()
            && first.key().0 <= now
        {
            self.ready.push_back(first.remove());
        }
        self.held.first_key_value().map(|((at, _), _)| *at)
    }

    /// The number of jobs that can be taken now.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Removes the held jobs that `keep` rejects, and makes the next jobs of their lanes ready.
    pub(super) fn drop_held(&mut self, keep: impl Fn(&J) -> bool) -> Vec<J> {
        let dropped: Vec<_> = self.held.extract_if(.., |_, placed| !keep(&placed.job)).collect();
        let mut jobs = Vec::with_capacity(dropped.len());
        for (_, Placed { lane, job }) in dropped {
            lane.into_iter().for_each(|lane| self.done(lane));
            jobs.push(job);
        }
        jobs
    }

    /// Removes all jobs that no worker took.
    pub(super) fn drain(&mut self) -> Vec<J> {
        let ready = std::mem::take(&mut self.ready);
        let held = std::mem::take(&mut self.held).into_values();
        let behind = self.lanes.values_mut().flat_map(std::mem::take);
        ready.into_iter().chain(held).chain(behind).map(|placed| placed.job).collect()
    }
}

/// A lane's id is a hash already.
#[derive(Debug, Default)]
struct IsHash(u64);

impl Hasher for IsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn take_one<J>(lanes: &mut Lanes<J>) -> Option<Placed<J>> {
        let mut run = Run::new();
        lanes.take(&mut run, 1);
        run.pop_front()
    }

    fn done<J>(lanes: &mut Lanes<J>, lane: Option<LaneId>) {
        lane.into_iter().for_each(|lane| lanes.done(lane));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(Option<LaneId>),
        Take,
        Done(usize),
        Hold(usize, u64),
        Release(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => prop_oneof![Just(None), (0..4_u64).prop_map(Some)].prop_map(Step::Push),
            4 => Just(Step::Take),
            3 => any::<usize>().prop_map(Step::Done),
            1 => (any::<usize>(), 0..50_u64).prop_map(|(which, until)| Step::Hold(which, until)),
            1 => (0..60_u64).prop_map(Step::Release),
        ]
    }

    #[test]
    fn dropping_held_job_makes_next_of_its_lane_ready() {
        let mut lanes = Lanes::default();
        lanes.push(Some(1), "first");
        lanes.push(Some(1), "second");
        let Placed { lane, job } = take_one(&mut lanes).unwrap();
        lanes.hold(lane, job, Instant::now() + Duration::from_secs(60));
        assert!(take_one(&mut lanes).is_none(), "its lane waits");
        assert_eq!(lanes.drop_held(|_| false), ["first"]);
        assert_eq!(take_one(&mut lanes).map(|placed| placed.job), Some("second"));
    }

    #[test]
    fn jobs_pushed_together_are_behind_those_of_their_lane() {
        let mut lanes = Lanes::default();
        lanes.push_all(1, 0..0);
        assert!(lanes.lanes.is_empty(), "no job, no lane");
        lanes.push_all(1, 0..3);
        lanes.push_all(1, 3..5);
        let mut run = Run::new();
        lanes.take(&mut run, 4);
        assert_eq!(run.drain(..).map(|placed| placed.job).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(take_one(&mut lanes).is_none(), "its lane runs");
        lanes.done(1);
        assert_eq!(take_one(&mut lanes).map(|placed| placed.job), Some(4));
    }

    proptest! {
        #[test]
        fn lane_runs_one_at_a_time_in_order(
            steps in proptest::collection::vec(step(), 0..300)
        ) {
            let start = Instant::now();
            let at = |ms| start + Duration::from_millis(ms);
            let mut lanes = Lanes::default();
            let mut pushed = 0_u32;
            let mut taken: Vec<Placed<(u32, Option<u64>)>> = Vec::new();
            let mut ended: Vec<(Option<LaneId>, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Push(lane) => {
                        lanes.push(lane, (pushed, None));
                        pushed += 1;
                    }
                    Step::Take => {
                        let Some(placed) = take_one(&mut lanes) else { continue };
                        let twice = taken.iter().any(|t| t.lane == placed.lane && t.lane.is_some());
                        prop_assert!(!twice, "two of one lane at once");
                        taken.push(placed);
                    }
                    Step::Done(which) if !taken.is_empty() => {
                        let placed = taken.swap_remove(which % taken.len());
                        done(&mut lanes, placed.lane);
                        ended.push((placed.lane, placed.job.0));
                    }
                    Step::Hold(which, until) if !taken.is_empty() => {
                        let placed = taken.swap_remove(which % taken.len());
                        lanes.hold(placed.lane, (placed.job.0, Some(until)), at(until));
                    }
                    Step::Release(now) => {
                        let next = lanes.release(at(now));
                        prop_assert!(next.is_none_or(|next| next > at(now)));
                    }
                    Step::Done(_) | Step::Hold(..) => {}
                }
            }
            // All other jobs can be taken once the held ones are due.
            loop {
                lanes.release(at(1_000));
                for placed in taken.drain(..) {
                    done(&mut lanes, placed.lane);
                    ended.push((placed.lane, placed.job.0));
                }
                match take_one(&mut lanes) {
                    Some(placed) => taken.push(placed),
                    None => break,
                }
            }
            prop_assert_eq!(ended.len(), pushed as usize);
            prop_assert!(lanes.lanes.is_empty(), "lanes are forgotten");
            for lane in 0..4 {
                let of_lane: Vec<_> =
                    ended.iter().filter(|(of, _)| *of == Some(lane)).map(|(_, n)| *n).collect();
                prop_assert!(of_lane.is_sorted(), "lane {} out of order: {:?}", lane, of_lane);
            }
        }

        #[test]
        fn returned_jobs_keep_order_of_each_lane(
            lane_ids in proptest::collection::vec(0..4_u64, 0..60),
            steps in proptest::collection::vec((1..10_usize, 0..10_usize, any::<bool>()), 1..200),
        ) {
            let mut lanes = Lanes::default();
            for (job, lane) in lane_ids.iter().enumerate() {
                lanes.push((*lane > 0).then_some(*lane), job);
            }
            let mut done_jobs: Vec<(Option<LaneId>, usize)> = Vec::new();
            for (max, begin, hold) in steps.into_iter().cycle() {
                lanes.release(Instant::now() + Duration::from_secs(120));
                let (mut run, mut last) = (Run::new(), None);
                lanes.take(&mut run, max);
                if run.is_empty() {
                    break;
                }
                prop_assert!(run.len() <= max);
                for _ in 0..begin.max(1) {
                    let Some(placed) = run.pop_front() else { break };
                    let goes_on = run.front().is_some_and(|next| next.lane == placed.lane);
                    done_jobs.push((placed.lane, placed.job));
                    if !goes_on {
                        done(&mut lanes, placed.lane);
                    }
                    last = Some(placed.lane);
                }
                // Either the next job is started and held, or the rest of the run is put back.
                match run.pop_front() {
                    Some(next) if hold => {
                        lanes.put_back(next.lane, &mut run);
                        let until = Instant::now() + Duration::from_secs(60);
                        lanes.hold(next.lane, next.job, until);
                    }
                    Some(next) => {
                        run.push_front(next);
                        lanes.put_back(None, &mut run);
                    }
                    None => prop_assert!(last.is_some()),
                }
            }
            prop_assert_eq!(done_jobs.len(), lane_ids.len());
            prop_assert!(lanes.lanes.is_empty(), "lanes are forgotten");
            for lane in 1..4 {
                let of_lane: Vec<_> =
                    done_jobs.iter().filter(|(of, _)| *of == Some(lane)).map(|(_, n)| *n).collect();
                prop_assert!(of_lane.is_sorted(), "lane {} out of order: {:?}", lane, of_lane);
            }
        }

        #[test]
        fn dropped_held_job_frees_its_lane(
            jobs in proptest::collection::vec((0..3_u64, any::<bool>()), 0..20)
        ) {
            let mut lanes = Lanes::default();
            for (job, (lane, keep)) in jobs.iter().enumerate() {
                lanes.push((*lane > 0).then_some(*lane), (job, *keep));
            }
            while let Some(Placed { lane, job }) = take_one(&mut lanes) {
                lanes.hold(lane, job, Instant::now() + Duration::from_secs(60));
            }
            let mut dropped = Vec::new();
            loop {
                dropped.extend(lanes.drop_held(|(_, keep)| *keep));
                let ready = lanes.ready();
                let mut taken = 0;
                while let Some(Placed { lane, job }) = take_one(&mut lanes) {
                    taken += 1;
                    lanes.hold(lane, job, Instant::now() + Duration::from_secs(60));
                }
                prop_assert_eq!(ready, taken);
                if taken == 0 {
                    break;
                }
            }
            prop_assert!(dropped.iter().all(|(_, keep)| !keep));
            prop_assert_eq!(lanes.drain().len() + dropped.len(), jobs.len());
        }

        #[test]
        fn drain_takes_all_that_is_not_taken(lane_ids in proptest::collection::vec(0..3_u64, 0..20)) {
            let mut lanes = Lanes::default();
            for (job, lane) in lane_ids.iter().enumerate() {
                lanes.push((*lane > 0).then_some(*lane), job);
            }
            let taken = usize::from(take_one(&mut lanes).is_some());
            let held = take_one(&mut lanes).map(|placed| lanes.hold(placed.lane, placed.job, Instant::now()));
            prop_assert_eq!(lanes.drain().len() + taken, lane_ids.len(), "held: {:?}", held);
        }
    }
}
