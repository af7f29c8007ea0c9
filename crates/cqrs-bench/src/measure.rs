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

/// Runs interleaved rounds of both sides after one warm-up each. Prints the medians, the spread of each side, and
/// the ratio. A difference inside the spread is called a tie.
pub(crate) async fn compare(
    scenario: String,
    unit: Unit,
    rounds: usize,
    ours: impl AsyncFn() -> f64,
    baseline: impl AsyncFn() -> f64,
) {
    let (mut of_ours, mut of_baseline) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let figures = (baseline().await, ours().await);
        if round > 0 {
            of_baseline.push(figures.0);
            of_ours.push(figures.1);
        }
    }
    let (ours, ours_spread) = median_and_spread(&mut of_ours);
    let (baseline, baseline_spread) = median_and_spread(&mut of_baseline);
    let line = serde_json::json!({
        "scenario": scenario,
        "unit": unit.name(),
        "ours": round(ours),
        "baseline": round(baseline),
        "ratio": (ours / baseline * 1_000.0).round() / 1_000.0,
        "ours_spread": ours_spread,
        "baseline_spread": baseline_spread,
        "tie": ours >= baseline_spread[0] && ours <= baseline_spread[1],
        "rounds": rounds,
    });
    println!("{line}");
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
