//! [`Series`]: the figures of one side, one for each round.

/// The figures of one side, one for each round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn median(&self) -> f64 {
        percentile(&self.0, 0.5)
    }

    /// The least and the greatest figure.
    pub(crate) fn spread(&self) -> (f64, f64) {
        (percentile(&self.0, 0.0), percentile(&self.0, 1.0))
    }

    /// The median, with the least and the greatest figure of several.
    pub(crate) fn text(&self, digits: usize) -> String {
        let (least, most) = self.spread();
        if self.0.len() < 2 {
            return format!("{least:.digits$}");
        }
        format!("{:.digits$} ({least:.digits$} to {most:.digits$})", self.median())
    }

    /// The ratio of the medians to those of `base`.
    pub(crate) fn ratio(&self, base: &Self) -> f64 {
        self.median() / base.median()
    }

    /// Set if one median is within the other's spread.
    pub(crate) fn is_tie(&self, base: &Self) -> bool {
        let within = |one: f64, (least, most): (f64, f64)| least <= one && one <= most;
        within(self.median(), base.spread()) || within(base.median(), self.spread())
    }

    /// The ratio to `base` as a text, which names a tie.
    pub(crate) fn against(&self, base: &Self) -> String {
        let tie = if self.is_tie(base) { ", a tie" } else { "" };
        format!("{:.2}x{tie}", self.ratio(base))
    }
}

/// The figure below which `share` of the figures lie.
pub(crate) fn percentile(figures: &[f64], share: f64) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    let place = (figures.len().saturating_sub(1)) as f64 * share;
    figures.get(place.round() as usize).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(figures: &[f64]) -> Series {
        Series(figures.to_vec())
    }

    #[test]
    fn percentiles_are_figures_of_the_series() {
        let figures: Vec<f64> = (1..=1_000).rev().map(f64::from).collect();
        assert_eq!([0.0, 0.5, 1.0].map(|share| percentile(&figures, share)), [1.0, 501.0, 1_000.0]);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn difference_inside_a_spread_is_a_tie() {
        let base = series(&[90.0, 100.0, 110.0]);
        assert_eq!(series(&[105.0, 108.0, 130.0]).against(&base), "1.08x, a tie");
        // Its median is outside of the base's spread, and the base's median inside of its own.
        assert_eq!(series(&[99.0, 120.0, 130.0]).against(&base), "1.20x, a tie");
        assert_eq!(series(&[119.0, 120.0, 130.0]).against(&base), "1.20x");
    }
}
