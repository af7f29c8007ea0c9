//! Interleaved rounds, medians and spreads.

use std::time::Duration;

/// What a figure counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    NanosPerCall,
    MessagesPerSecond,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::NanosPerCall => "ns/call",
            Self::MessagesPerSecond => "msg/s",
        }
    }

    pub(crate) fn of(self, count: usize, took: Duration) -> f64 {
        match self {
            Self::NanosPerCall => took.as_nanos() as f64 / count as f64,
            Self::MessagesPerSecond => count as f64 / took.as_secs_f64(),
        }
    }
}

/// Figures of both sides, one of each per round.
pub(crate) struct Comparison {
    scenario: String,
    unit: Unit,
    ours: Vec<f64>,
    baseline: Vec<f64>,
}

impl Comparison {
    pub(crate) fn new(scenario: impl Into<String>, unit: Unit) -> Self {
        Self { scenario: scenario.into(), unit, ours: Vec::new(), baseline: Vec::new() }
    }

    pub(crate) fn add(&mut self, ours: f64, baseline: f64) {
        self.ours.push(ours);
        self.baseline.push(baseline);
    }

    /// Prints the medians, the spread of each side, and the ratio. A difference inside the spread is
    /// called a tie.
    pub(crate) fn print(mut self) {
        let (ours, ours_spread) = median_and_spread(&mut self.ours);
        let (baseline, baseline_spread) = median_and_spread(&mut self.baseline);
        let ratio = ours / baseline;
        let line = serde_json::json!({
            "scenario": self.scenario,
            "unit": self.unit.name(),
            "ours": round(ours),
            "baseline": round(baseline),
            "ratio": (ratio * 1_000.0).round() / 1_000.0,
            "ours_spread": ours_spread,
            "baseline_spread": baseline_spread,
            "tie": ours >= baseline_spread[0] && ours <= baseline_spread[1],
            "rounds": self.ours.len(),
        });
        println!("{line}");
    }
}

fn median_and_spread(figures: &mut [f64]) -> (f64, [f64; 2]) {
    figures.sort_by(f64::total_cmp);
    let spread =
        [figures.first(), figures.last()].map(|end| round(end.copied().unwrap_or(f64::NAN)));
    (figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN), spread)
}

fn round(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}
