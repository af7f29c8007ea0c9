//! The part of its work that a statement does at once; used by the lanes and the driver of a relay.

/// Successes in a row after which a statement does twice as much.
const GROW_AFTER: u32 = 16;

/// Half as much after each statement that took too long: it would take too long again.
#[derive(Debug, Default)]
pub(super) struct Part {
    halvings: u32,
    /// In a row.
    successes: u32,
}

impl Part {
    /// The part of `whole`, at least 1.
    pub(super) fn of(&self, whole: usize) -> usize {
        (whole >> self.halvings).max(1)
    }

    pub(super) fn timed_out(&mut self) {
        (self.halvings, self.successes) = ((self.halvings + 1).min(usize::BITS - 1), 0);
    }

    pub(super) fn succeeded(&mut self) {
        self.successes += 1;
        if self.successes >= GROW_AFTER {
            (self.halvings, self.successes) = (self.halvings.saturating_sub(1), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_shrinks_to_one_and_grows_again() {
        let mut part = Part::default();
        assert_eq!(part.of(64), 64);
        part.timed_out();
        assert_eq!(part.of(64), 32);
        (0..100).for_each(|_| part.timed_out());
        assert_eq!((part.of(usize::MAX), part.of(64)), (1, 1));
        (0..GROW_AFTER - 1).for_each(|_| part.succeeded());
        assert_eq!(part.of(usize::MAX), 1);
        part.succeeded();
        assert_eq!(part.of(usize::MAX), 3);
    }
}
