//! How a partition gets over its suspects.

use std::sync::Arc;
use std::time::Instant;

use super::baton::{Baton, Turn};
use super::ledger::View;
use super::partition::Partition;

/// A partition with suspects ([`watch`](super::watch)), in the hands of the poll thread: asks for one grant
/// after the other, each while the partition is quiet and it has the [`baton`](super::baton).
///
/// The baton is kept until the partition is quiet again and no committed note of it has a name, so that
/// whoever gets it next is alone; and longer while nobody else wants it. Whoever keeps it for longer than
/// the patience goes on without: a handler may be slow, or keep its deliveries until it has more of them.
#[derive(Debug)]
pub(super) struct Caution {
    partition: Arc<Partition>,
    turn: Turn,
    /// Since when it keeps others waiting.
    since: Instant,
    /// Whether it gave the baton on while the committed note has a name, which is accused whoever kills.
    left_name: bool,
}

/// What comes of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Wait,
    /// The notes are to be committed at once.
    Commit,
    /// All suspects are behind.
    Over,
}

impl Caution {
    pub(super) fn new(partition: Arc<Partition>, baton: Arc<Baton>, now: Instant) -> Self {
        let turn = Turn::new(baton, Arc::clone(&partition.shared));
        Self { partition, turn, since: now, left_name: false }
    }

    /// The partition goes to another member, and no handler of it starts any more. The others go on at once;
    /// but while a delivery of it is left that may run, none of theirs is named.
    pub(super) fn retire(self) {
        let Self { partition, mut turn, .. } = self;
        if partition.running() > 0 {
            turn.release();
            turn.set_strays(true);
            partition.keep(turn);
        }
    }

    /// Records below may be handed out now.
    pub(super) fn granted(&self) -> i64 {
        if self.turn.holds() { self.partition.granted() } else { i64::MIN }
    }

    /// Goes on as far as it can; `head` is the record to be handed out next, if there is one.
    pub(super) fn look(&mut self, head: Option<i64>, now: Instant) -> Look {
        let mut view = self.partition.view();
        if view.suspects_until.is_none() && !view.is_asking {
            return Look::Over;
        }
        let granted = head.filter(|head| *head < self.partition.granted());
        if self.turn.holds() && self.keep(&view, granted.is_some(), now) {
            view = self.partition.view();
        }
        self.left_name &= view.is_named;
        self.turn.set_strays(view.has_strays || self.left_name);
        if !view.is_quiet || view.is_asking {
            self.turn.step_back();
            return if view.is_asking { Look::Commit } else { Look::Wait };
        }
        match head {
            _ if granted.is_some() => drop(self.take(now)),
            Some(head) if view.suspects_until.is_none_or(|until| until <= head) => {
                self.partition.ask(head, false);
                return Look::Commit;
            }
            // Another one's turn, once the name is out of the note.
            Some(_) if view.is_named && self.turn.is_wanted() => {}
            Some(head) if self.take(now) => {
                self.partition.ask(head, self.turn.may_name());
                return Look::Commit;
            }
            Some(_) => {}
            None => self.turn.step_back(),
        }
        if view.is_named { Look::Commit } else { Look::Wait }
    }

    fn take(&mut self, now: Instant) -> bool {
        if !self.turn.holds() {
            self.since = now;
        }
        self.turn.take()
    }

    /// Gives the baton on when it is time to; `has_more`: a record that is granted was not handed out yet.
    /// Whether the view has changed.
    fn keep(&mut self, view: &View, has_more: bool, now: Instant) -> bool {
        if view.is_quiet && !view.is_named && !view.is_asking {
            self.since = now;
            if !has_more && self.turn.is_wanted() {
                self.turn.release();
            }
            return false;
        }
        if now < self.since + view.patience {
            return false;
        }
        self.since = now;
        if view.is_quiet {
            // The server takes no commit: nobody else is to wait for that.
            self.left_name = view.is_named;
            self.turn.release();
            return false;
        }
        tracing::warn!(
            topic = &*self.partition.topic,
            partition = self.partition.id,
            "suspects of an earlier crash are not done in time: the others go on beside them"
        );
        self.partition.outlast();
        true
    }
}

#[cfg(test)]
mod tests;
