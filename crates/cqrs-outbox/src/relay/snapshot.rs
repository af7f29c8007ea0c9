//! The ids below which no row can appear late, from snapshots of PostgreSQL; used by the reads of the relay.

use std::collections::VecDeque;
use std::num::ParseIntError;
use std::str::FromStr;

/// The marks that are kept. Fewer marks make a late read longer, never wrong.
const MAX_MARKS: usize = 512;

/// The transactions that are visible to a statement, as `pg_current_snapshot()` writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// One more than the last finished transaction. Later ones may run already.
    xmax: u64,
    /// Those below `xmax` that still run, in order.
    running: Vec<u64>,
}

impl Snapshot {
    #[cfg(test)]
    pub(super) fn new(xmax: u64, running: Vec<u64>) -> Self {
        Self { xmax, running }
    }

    fn runs(&self, xid: u64) -> bool {
        self.running.binary_search(&xid).is_ok()
    }

    /// `true` if the transaction had finished.
    fn has_finished(&self, xid: u64) -> bool {
        xid < self.xmax && !self.runs(xid)
    }

    /// The first transaction, of others than `own`, that had not finished in `self` and has in `later`.
    fn first_finished(&self, later: &Self, own: &[u64]) -> Option<u64> {
        let known = self.running.iter().copied();
        let mut finished = known.chain(self.xmax..later.xmax).filter(|xid| !later.runs(*xid));
        finished.find(|xid| !own.contains(xid))
    }
}

impl FromStr for Snapshot {
    type Err = ParseIntError;

    /// `xmin:xmax:xip,xip`.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let mut parts = text.split(':');
        let _xmin: u64 = parts.next().unwrap_or_default().parse()?;
        let xmax = parts.next().unwrap_or_default().parse()?;
        let running = parts.next().unwrap_or_default();
        let running = running.split(',').filter(|xid| !xid.is_empty()).map(str::parse);
        let mut running = running.collect::<Result<Vec<_>, _>>()?;
        running.sort_unstable();
        Ok(Self { xmax, running })
    }
}

/// The lowest id of the rows that may have become visible below rows that were read already.
///
/// A transaction takes its number before its ids (the statement that writes outbox rows sees to it), and
/// the relay's own writing statements have numbers, too. A later number than that of such a statement was
/// taken after the statement began, so its ids are above all that were read before: that pair is a mark.
/// The relay's own transactions write no rows, so their end makes none visible.
/// Writers of another kind may break this rule: the sweep finds their late rows.
#[derive(Debug)]
pub(super) struct LateRows {
    previous: Option<Snapshot>,
    /// (number of one of our transactions, highest id read before it began), both ascending.
    marks: VecDeque<(u64, i64)>,
    /// Transactions of ours that `previous` does not know to have finished.
    own: Vec<u64>,
    highest: i64,
}

impl Default for LateRows {
    fn default() -> Self {
        Self { previous: None, marks: VecDeque::new(), own: Vec::new(), highest: i64::MIN }
    }
}

impl LateRows {
    /// The highest id read so far, to be taken before a writing statement begins.
    pub(super) fn highest(&self) -> i64 {
        self.highest
    }

    pub(super) fn read_up_to(&mut self, id: i64) {
        self.highest = self.highest.max(id);
    }

    /// Our transaction `xid` began when `highest` was the highest id read.
    pub(super) fn mark(&mut self, xid: u64, highest: i64) {
        self.own.push(xid);
        if self.own.len() > MAX_MARKS {
            // Nothing is read. Its end makes a late read longer.
            self.own.remove(0);
        }
        if self.marks.back().is_some_and(|(last, _)| *last >= xid) {
            return;
        }
        self.marks.push_back((xid, highest));
        if self.marks.len() > MAX_MARKS {
            let mut keep = false;
            self.marks.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// Takes the snapshot of a read. `Some(id)`: rows above `id` may be visible that the reads before could
    /// not see.
    pub(super) fn observe(&mut self, snapshot: Snapshot) -> Option<i64> {
        let previous = self.previous.replace(snapshot);
        let (previous, now) = (previous?, self.previous.as_ref()?);
        if now.xmax < previous.xmax {
            // Not the same server any more, or one that was set back.
            self.marks.clear();
            self.own.clear();
            return Some(i64::MIN);
        }
        let finished = previous.first_finished(now, &self.own);
        self.own.retain(|xid| !now.has_finished(*xid));
        let finished = finished?;
        let below = self.marks.iter().rposition(|(xid, _)| *xid < finished);
        let above = below.map_or(i64::MIN, |place| self.marks[place].1);
        // Needed again: the last mark below the first transaction that still runs.
        let oldest = now.running.first().copied().unwrap_or(now.xmax);
        if let Some(place) = self.marks.iter().rposition(|(xid, _)| *xid < oldest) {
            self.marks.drain(..place);
        }
        Some(above)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> LateRows {
        let mut late = LateRows::default();
        late.observe(Snapshot::new(100, vec![90]));
        late
    }

    #[test]
    fn snapshot_text_is_parsed() {
        assert_eq!("5:9:5,7".parse(), Ok(Snapshot::new(9, vec![5, 7])));
        assert_eq!("9:9:".parse(), Ok(Snapshot::new(9, vec![])));
        assert!("".parse::<Snapshot>().is_err() && "5:x:".parse::<Snapshot>().is_err());
    }

    #[test]
    fn unchanged_transactions_bring_no_late_row() {
        assert_eq!(late().observe(Snapshot::new(100, vec![90])), None);
    }

    #[test]
    fn finished_transaction_starts_at_its_mark() {
        let mut late = late();
        late.read_up_to(7);
        late.mark(110, late.highest());
        late.read_up_to(20);
        late.mark(120, late.highest());
        late.read_up_to(30);
        // 90 still runs; 115 took its ids after 7 was read.
        let running = (100..115).collect::<Vec<_>>();
        let now = Snapshot::new(116, [vec![90], running].concat());
        assert_eq!(late.observe(now), Some(7));
        let running = [90].into_iter().chain(100..115).chain(116..125).collect();
        assert_eq!(late.observe(Snapshot::new(126, running)), Some(20));
    }

    #[test]
    fn own_transactions_bring_no_late_row() {
        let mut late = late();
        for xid in 100..10_000 {
            late.mark(xid, late.highest());
            assert_eq!(late.observe(Snapshot::new(xid + 1, vec![90])), None, "{xid}");
        }
        assert!(late.own.is_empty());
        // One whose end is seen before its number is known counts as another's.
        assert!(late.observe(Snapshot::new(10_001, vec![90])).is_some());
        late.mark(10_000, 7);
        late.mark(10_002, 8);
        assert_eq!(late.observe(Snapshot::new(10_002, vec![90, 10_001])), None);
        assert_eq!(late.own, [10_002]);
        assert_eq!(late.observe(Snapshot::new(10_003, vec![90])), Some(7), "10,001 is through");
    }

    #[test]
    fn transaction_above_xmax_may_run_already() {
        // 100 ran when the first snapshot was taken, although its xmax is 100.
        assert_eq!(late().observe(Snapshot::new(101, vec![90])), Some(i64::MIN));
    }

    #[test]
    fn long_transaction_does_not_lengthen_late_reads() {
        let mut late = late();
        for n in 1..2_000_u32 {
            let (xid, id) = (100 + u64::from(n) * 2, i64::from(n) * 10);
            late.read_up_to(id);
            late.mark(xid, id);
            let above = late.observe(Snapshot::new(xid + 2, vec![90]));
            assert!(n < 2 || above >= Some(id - 20), "{n}: {above:?}");
        }
        assert!(late.marks.len() <= MAX_MARKS);
        assert_eq!(late.observe(Snapshot::new(4_200, vec![])), Some(i64::MIN), "90 is through");
        assert_eq!(late.marks.len(), 1);
    }

    #[test]
    fn server_that_was_set_back_is_read_anew() {
        assert_eq!(late().observe(Snapshot::new(50, vec![])), Some(i64::MIN));
    }
}
