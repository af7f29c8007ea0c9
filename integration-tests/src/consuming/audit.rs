//! What was settled, as the broker tells it, against what was handled.

use std::collections::{HashMap, HashSet};

use super::fixture::Fixture;
use super::journal::Mark;
use super::ledger::Ledger;
use super::work::Kind;

/// Compares Kafka's committed offsets with what handlers came to an end with.
#[derive(Debug, Default)]
pub struct Audit {
    /// Lines of the journal that were looked at.
    read: usize,
    /// By partition: the offsets that were handled.
    ended: HashMap<i32, HashSet<i64>>,
    /// By partition: up to where the commits were found right.
    right: HashMap<i32, i64>,
    /// How often a partition's commit had moved.
    pub moves: usize,
}

impl Audit {
    /// Reads the committed offsets, then the journal: everything before a committed offset must have been
    /// handled. Returns
    /// how many records at and behind the committed offsets were handled: those come again when the
    /// consumer dies now.
    ///
    /// # Panics
    /// When a commit is beyond the lowest unfinished offset.
    pub async fn check(&mut self, fixture: &Fixture, ledger: &mut Ledger) -> usize {
        let committed = fixture.committed().await;
        let lines = ledger.refresh().lines();
        for line in &lines[self.read..] {
            if let (Some((partition, offset)), Mark::End) = (line.place, line.mark) {
                self.ended.entry(partition).or_default().insert(offset);
            }
        }
        self.read = lines.len();
        let mut again = 0;
        for (partition, offset) in committed {
            let ended = self.ended.entry(partition).or_default();
            let right = self.right.entry(partition).or_default();
            self.moves += usize::from(offset > *right);
            let unfinished = (*right..offset).find(|at| !ended.contains(at));
            assert_eq!(unfinished, None, "partition {partition} is committed up to {offset}");
            *right = offset.max(*right);
            again += ended.iter().filter(|at| **at >= offset).count();
        }
        again
    }
}

/// How many messages may come again when the consumer dies now: on Kafka those handled since the last
/// commit (they are counted), on RabbitMQ those whose acks were on their way, at most all that were out.
pub async fn may_come_again(
    fixture: &Fixture,
    ledger: &mut Ledger,
    audit: &mut Audit,
    out: usize,
) -> usize {
    match fixture.kind {
        Kind::Kafka => audit.check(fixture, ledger).await,
        Kind::Amqp => out,
    }
}
