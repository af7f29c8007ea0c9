//! [`Audit`]: the broker's commits, compared with the handled messages; used by fault tests.

use std::collections::{HashMap, HashSet};

use super::fixture::Fixture;
use super::journal::Mark;
use super::outcomes::Outcomes;
use super::work::Kind;

/// Compares Kafka's committed offsets with the handled messages.
#[derive(Debug, Default)]
pub struct Audit {
    /// Lines of the journal that were read.
    read: usize,
    /// By partition: the offsets that were handled.
    ended: HashMap<i32, HashSet<i64>>,
    /// By partition: the end of the verified commits.
    right: HashMap<i32, i64>,
    /// The number of moved commits.
    pub moves: usize,
}

impl Audit {
    /// Reads the committed offsets, then the journal: everything before a committed offset must have been
    /// handled. Returns the number of handled records at and behind the committed offsets, which are
    /// redelivered when the consumer dies now.
    ///
    /// # Panics
    /// When a commit is beyond the lowest unfinished offset.
    pub async fn check(&mut self, fixture: &Fixture, outcomes: &mut Outcomes) -> usize {
        let committed = fixture.committed().await;
        let lines = outcomes.refresh().lines();
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

/// The most messages that may be redelivered when the consumer dies now: on Kafka those handled since the
/// last commit, on RabbitMQ those with an ack on its way, at most all in flight.
pub async fn may_be_redelivered(
    fixture: &Fixture,
    outcomes: &mut Outcomes,
    audit: &mut Audit,
    out: usize,
) -> usize {
    match fixture.kind {
        Kind::Kafka => audit.check(fixture, outcomes).await,
        Kind::Amqp => out,
    }
}
