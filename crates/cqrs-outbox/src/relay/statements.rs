//! The statements of a relay that run, with their bound in time and their outages; used by its driver.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinSet;

use super::effects::{Delete, LaneEpoch, LateRow, Load, Move, ReadAnswer, RowId};
use super::lane::ParkedEntry;
use super::membership::Plan;
use super::outage::Outage;
use super::store::{Payload, ReadEntry, Store, View};
use crate::error::OutboxError;

/// The longest pause between two tries, while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest that a relay takes to release its lanes at its end.
const LEAVE: Duration = Duration::from_secs(5);

/// The statements that fail and recover apart from each other: a server in recovery reads, and does not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Heartbeat,
    Lanes,
    Read,
    Delete,
    Move,
    Load,
    Notify,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Heartbeat,
        Self::Lanes,
        Self::Read,
        Self::Delete,
        Self::Move,
        Self::Load,
        Self::Notify,
    ];

    /// Those that the publishing of rows depends on.
    const NEEDED: [Self; 4] = [Self::Heartbeat, Self::Read, Self::Delete, Self::Move];

    fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Lanes => "lanes",
            Self::Read => "reading rows",
            Self::Delete => "deleting rows",
            Self::Move => "moving rows",
            Self::Load => "loading rows",
            Self::Notify => "notifying",
        }
    }
}

/// A statement that is through.
#[derive(Debug)]
pub(super) enum Done {
    Hot(Result<ReadAnswer<ReadEntry>, OutboxError>),
    Ids(Result<ReadAnswer<LateRow>, OutboxError>),
    Rows(Result<ReadAnswer<ReadEntry>, OutboxError>),
    Deleted(Vec<Delete>, i64, Result<Option<u64>, OutboxError>),
    Moved(Vec<Move>, Result<Vec<i16>, OutboxError>),
    Loaded(Load, Result<HashMap<RowId, Payload>, OutboxError>),
    Seen(i64, Result<View, OutboxError>),
    Lanes(Result<Changed, OutboxError>),
    Notified(Result<(), OutboxError>),
}

impl Done {
    fn kind(&self) -> Kind {
        match self {
            Self::Hot(_) | Self::Ids(_) | Self::Rows(_) => Kind::Read,
            Self::Deleted(..) => Kind::Delete,
            Self::Moved(..) => Kind::Move,
            Self::Loaded(..) => Kind::Load,
            Self::Seen(..) => Kind::Heartbeat,
            Self::Lanes(_) => Kind::Lanes,
            Self::Notified(_) => Kind::Notify,
        }
    }
}

/// A change of the owned lanes.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) taken: Vec<LaneEpoch>,
    pub(super) parked: Vec<ParkedEntry>,
    pub(super) released: Vec<LaneEpoch>,
    /// Set if more lanes are owned than `taken`.
    pub(super) is_partial: bool,
}

/// Takes the lanes of a plan, at most `most` with their parked rows: the others are `unknown` in the next plan.
pub(super) async fn take<S: Store>(
    store: &S,
    bound: Bound,
    plan: Plan,
    most: usize,
) -> Result<Changed, OutboxError> {
    let Plan { unknown, missing, dead, .. } = plan;
    let mut taken = unknown;
    if missing > 0 {
        taken.extend(bound.on(Kind::Lanes, store.take(&dead, missing)).await?);
    }
    let is_partial = taken.len() > most;
    taken.truncate(most);
    // After the lanes are taken: parked rows change by the hand of the owner only.
    let parked = bound.on(Kind::Lanes, store.parked(&taken)).await?;
    Ok(Changed { taken, parked, released: Vec::new(), is_partial })
}

/// The bound of a relay's statements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound(Duration);

impl Bound {
    /// Drops the statement when the bound has passed: its connection is closed then.
    pub(super) async fn on<T>(
        self,
        kind: Kind,
        statement: impl Future<Output = Result<T, OutboxError>>,
    ) -> Result<T, OutboxError> {
        match tokio::time::timeout(self.0, statement).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(OutboxError::no_answer(kind.name(), self.0)),
        }
    }
}

/// Times are since the start of the relay. At most one statement of a kind runs.
///
/// A statement is a task of its own, so that its rows are decoded beside the loop that publishes. The task owns what
/// it was started with until [`next`](Self::next) hands it back in its [`Done`]. Dropped, this ends all of them: the
/// connection of a statement that was cut off is closed, and the statement is through or not, as after a crash.
pub(super) struct Statements {
    bound: Bound,
    running: JoinSet<Done>,
    /// By [`Kind`].
    is_running: [bool; Kind::ALL.len()],
    outages: [Outage; Kind::ALL.len()],
}

impl Statements {
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            bound: Bound(longest),
            running: JoinSet::new(),
            is_running: Default::default(),
            outages: Kind::ALL.map(|kind| Outage::new(kind.name(), LONGEST_PAUSE)),
        }
    }

    pub(super) fn bound(&self) -> Bound {
        self.bound
    }

    /// `true` if no statement of this kind runs or waits for the end of an outage.
    pub(super) fn may_start(&self, kind: Kind, now: Duration) -> bool {
        !self.is_running[kind as usize] && !self.outages[kind as usize].waits(now)
    }

    pub(super) fn is_running(&self, kind: Kind) -> bool {
        self.is_running[kind as usize]
    }

    /// Starts a statement, which is to be [bound](Self::bound).
    pub(super) fn start(
        &mut self,
        kind: Kind,
        statement: impl Future<Output = Done> + Send + 'static,
    ) {
        self.is_running[kind as usize] = true;
        self.running.spawn(statement);
    }

    /// The next statement that is through. `None` if none runs.
    ///
    /// # Panics
    /// If the statement did.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, it loses no answer.
    pub(super) async fn next(&mut self) -> Option<Done> {
        let done = match self.running.join_next().await? {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime shuts down, and drops the relay, too.
                Err(_cancelled) => std::future::pending().await,
            },
        };
        self.is_running[done.kind() as usize] = false;
        Some(done)
    }

    /// Gives the lanes `owned` up, and waits for the statements that run. Those that take too long are cut off.
    pub(super) async fn leave<S: Store>(mut self, store: &S, owned: &[LaneEpoch]) {
        let release = async {
            match owned.is_empty() {
                true => Ok(()),
                false => store.release(owned).await,
            }
        };
        let drain = async { while self.next().await.is_some() {} };
        let leave = async {
            // Together: the statements may have the connections that the release waits for.
            let (released, ()) = tokio::join!(release, drain);
            released?;
            store.leave().await
        };
        match tokio::time::timeout(LEAVE, leave).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the relay of the outbox ends without a goodbye")
            }
            Err(_late) => tracing::warn!("the relay of the outbox ends while its database is away"),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub(super) fn succeeded(&mut self, kind: Kind, now: Duration) {
        self.outages[kind as usize].succeeded(now);
    }

    pub(super) fn failed(&mut self, kind: Kind, now: Duration, error: &str) {
        self.outages[kind as usize].failed(now, error);
    }

    /// `true` while the last statement of this kind failed.
    pub(super) fn is_away(&self, kind: Kind) -> bool {
        self.outages[kind as usize].retry_at().is_some()
    }

    /// `true` while a statement fails that the relay always comes back to. The others may not be needed again.
    pub(super) fn is_any_away(&self) -> bool {
        Kind::NEEDED.into_iter().any(|kind| self.is_away(kind))
    }

    /// The times of the next attempts.
    pub(super) fn retries(&self) -> impl Iterator<Item = Duration> {
        self.outages.iter().filter_map(Outage::retry_at)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::error::OutboxErrorKind;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn each_kind_has_an_outage_of_its_own() {
        let mut statements = Statements::new(at(1_000));
        for kind in Kind::ALL {
            statements.failed(kind, at(0), "down");
            for other in Kind::ALL {
                let waits = !statements.may_start(other, at(1));
                assert_eq!((waits, statements.is_away(other)), (other == kind, other == kind));
            }
            assert_eq!(statements.is_any_away(), Kind::NEEDED.contains(&kind), "{kind:?}");
            assert_eq!(statements.retries().collect::<Vec<_>>(), [at(100)]);
            assert!(statements.may_start(kind, at(100)), "{kind:?} is tried again");
            statements.succeeded(kind, at(101));
            assert!(!statements.is_any_away(), "{kind:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn statement_without_an_answer_ends_at_its_bound() {
        let mut statements = Statements::new(at(30_000));
        let started = tokio::time::Instant::now();
        let bound = statements.bound();
        statements.start(Kind::Notify, async move {
            Done::Notified(bound.on(Kind::Notify, std::future::pending()).await)
        });
        assert!(!statements.may_start(Kind::Notify, at(1)) && statements.is_running(Kind::Notify));
        let Some(Done::Notified(Err(error))) = statements.next().await else { panic!("an error") };
        assert_eq!(started.elapsed(), at(30_000));
        assert_eq!(error.kind(), OutboxErrorKind::Unavailable);
        assert_eq!(error.source().unwrap().to_string(), "no answer within 30s");
        assert!(statements.may_start(Kind::Notify, at(1)) && statements.is_empty());
    }

    #[tokio::test]
    async fn statement_runs_while_the_loop_does_other_work() {
        let mut statements = Statements::new(at(30_000));
        let (through, is_through) = tokio::sync::oneshot::channel();
        statements.start(Kind::Notify, async move {
            let _sent = through.send(());
            Done::Notified(Ok(()))
        });
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, is_through).await.expect("it runs").unwrap();
        assert!(statements.is_running(Kind::Notify), "its answer waits");
        assert!(matches!(statements.next().await, Some(Done::Notified(Ok(())))));
    }

    #[tokio::test]
    async fn dropped_statements_are_cut_off() {
        let mut statements = Statements::new(at(30_000));
        let (connection, mut is_closed) = tokio::sync::oneshot::channel::<()>();
        statements.start(Kind::Delete, async move {
            let _open = connection;
            std::future::pending().await
        });
        tokio::task::yield_now().await;
        assert!(is_closed.try_recv().is_err_and(|error| error == TryRecvError::Empty), "it runs");
        drop(statements);
        let limit = Duration::from_secs(30);
        let closed = tokio::time::timeout(limit, is_closed).await.expect("it is dropped");
        assert!(closed.is_err());
    }

    #[tokio::test]
    #[should_panic(expected = "of the test")]
    async fn panic_of_a_statement_ends_the_relay() {
        let mut statements = Statements::new(at(30_000));
        statements.start(Kind::Delete, async { panic!("of the test") });
        statements.next().await;
    }
}
