//! The statements that park rows or declare them dead: in batches, and one by one after a batch that the database
//! refused; used by the driver.

use std::collections::HashSet;

use super::effects::{Move, RowId};
use super::lanes::Lanes;
use crate::error::{OutboxError, OutboxErrorKind};

/// Rows that one statement moves.
const MOVES: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Moves to be made one by one.
    single: usize,
    /// Rows whose move the database refuses.
    refused: HashSet<RowId>,
}

impl Moves {
    /// The most rows of the next statement.
    pub(super) fn most(&self) -> usize {
        if self.single > 0 { 1 } else { MOVES }
    }

    /// The moves are done. `true` if none is left that the database refuses.
    pub(super) fn moved(&mut self, moves: &[Move]) -> bool {
        self.single = self.single.saturating_sub(1);
        self.refused.retain(|row| !moves.iter().any(|of| of.row == *row));
        self.refused.is_empty()
    }

    /// The statement failed: its moves are made again.
    pub(super) fn failed<P>(
        &mut self,
        moves: Vec<Move>,
        error: &OutboxError,
        lanes: &mut Lanes<P>,
    ) {
        self.single = self.single.saturating_sub(1);
        if error.kind() != OutboxErrorKind::Database {
            lanes.not_moved(moves);
        } else if let [refused] = &moves[..] {
            self.refused.insert(refused.row);
            lanes.postpone(refused.clone());
        } else {
            self.single = moves.len();
            lanes.not_moved(moves);
        }
    }
}
