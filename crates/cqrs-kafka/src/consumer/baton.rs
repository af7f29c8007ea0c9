//! Whose turn it is to run suspects, in the whole process.
//!
//! A process dies as a whole. While two partitions ran suspects at the same time, the one would be accused
//! of what the other one's record did. So only the holder of the baton hands suspects out.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use super::shared::Shared;

/// One for all subscriptions of the process. Invariants: at most one turn holds it; who waits for it is
/// served in order; a turn that is dropped neither holds it nor waits.
static BATON: LazyLock<Arc<Baton>> = LazyLock::new(Arc::default);

#[derive(Default)]
pub(super) struct Baton(Mutex<State>);

#[derive(Default)]
struct State {
    turns: u64,
    holder: Option<Claim>,
    queue: VecDeque<Claim>,
    /// Turns with suspects that run although their time is over, or with a name left in the note.
    strays: usize,
}

struct Claim {
    turn: u64,
    /// Whose poll thread to wake.
    shared: Arc<Shared>,
}

/// A partition's claim to the baton.
#[derive(Debug)]
pub(super) struct Turn {
    baton: Arc<Baton>,
    shared: Arc<Shared>,
    id: u64,
    place: Place,
    has_strays: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Away,
    Waits,
    Holds,
}

impl Baton {
    /// The one of the process.
    pub(super) fn of_process() -> Arc<Self> {
        Arc::clone(&BATON)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    pub(super) fn new(baton: Arc<Baton>, shared: Arc<Shared>) -> Self {
        let mut state = baton.state();
        state.turns += 1;
        let id = state.turns;
        drop(state);
        Self { baton, shared, id, place: Place::Away, has_strays: false }
    }

    pub(super) fn holds(&self) -> bool {
        self.place == Place::Holds
    }

    /// Takes the baton when it is free and nobody waits for longer, else waits for it: the poll thread is
    /// woken.
    pub(super) fn take(&mut self) -> bool {
        if self.holds() {
            return true;
        }
        let mut state = self.baton.state();
        let is_next = state.queue.front().is_none_or(|next| next.turn == self.id);
        if state.holder.is_none() && is_next {
            state.queue.pop_front();
            state.holder = Some(Claim { turn: self.id, shared: Arc::clone(&self.shared) });
            self.place = Place::Holds;
            return true;
        }
        if self.place == Place::Away {
            state.queue.push_back(Claim { turn: self.id, shared: Arc::clone(&self.shared) });
            self.place = Place::Waits;
            let holder = state.holder.as_ref().map(|holder| Arc::clone(&holder.shared));
            drop(state);
            // It may keep it for nothing.
            holder.inspect(|holder| holder.wake_poller());
        }
        false
    }

    /// Whether others wait for it.
    pub(super) fn is_wanted(&self) -> bool {
        !self.baton.state().queue.is_empty()
    }

    /// Neither holds it nor waits for it.
    pub(super) fn release(&mut self) {
        if self.place == Place::Away {
            return;
        }
        let mut state = self.baton.state();
        state.queue.retain(|waiting| waiting.turn != self.id);
        state.holder.take_if(|holder| holder.turn == self.id);
        self.place = Place::Away;
        let next = state.queue.front().map(|next| Arc::clone(&next.shared));
        drop(state);
        next.inspect(|next| next.wake_poller());
    }

    /// Does not wait for it.
    pub(super) fn step_back(&mut self) {
        if self.place == Place::Waits {
            self.release();
        }
    }

    /// Tells whether suspects run on although their time is over, or a name is left in the note.
    pub(super) fn set_strays(&mut self, has_strays: bool) {
        if self.has_strays == has_strays {
            return;
        }
        self.has_strays = has_strays;
        let mut state = self.baton.state();
        state.strays = if has_strays { state.strays + 1 } else { state.strays - 1 };
    }

    /// Whether no suspect runs on anywhere and no other name is left: who runs alone now is alone.
    pub(super) fn may_name(&self) -> bool {
        self.baton.state().strays == 0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.set_strays(false);
        self.release();
    }
}

impl fmt::Debug for Baton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let holder = state.holder.as_ref().map(|holder| holder.turn);
        let waiting = state.queue.len();
        f.debug_struct("Baton").field("holder", &holder).field("waiting", &waiting).finish()
    }
}
