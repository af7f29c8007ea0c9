//! The comparison of sides: interleaved rounds, medians and spreads, one line of JSON for each figure.

mod line;
mod series;

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

pub(crate) use self::line::{Line, SideLine, load_average};
pub(crate) use self::series::{Series, percentile};
use crate::cpu::Elapsed;

/// What a figure counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    NanosPerCall,
    MessagesPerSecond,
    Micros,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::NanosPerCall => "ns/call",
            Self::MessagesPerSecond => "msg/s",
            Self::Micros => "us",
        }
    }

    pub(crate) fn of(self, count: usize, took: Duration) -> f64 {
        match self {
            Self::NanosPerCall => took.as_nanos() as f64 / count as f64,
            Self::MessagesPerSecond => count as f64 / took.as_secs_f64(),
            Self::Micros => took.as_secs_f64() * 1e6 / count as f64,
        }
    }
}

/// What one round of a side gave.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// One for each of [`Comparison::metrics`].
    pub(crate) values: Vec<f64>,
    /// Microseconds of processor time for each message.
    pub(crate) cpu_us: Option<f64>,
    /// The machine's busy processors.
    pub(crate) cores: Option<f64>,
}

impl Round {
    /// `count` calls or messages in `elapsed`.
    pub(crate) fn new(unit: Unit, count: usize, elapsed: Elapsed) -> Self {
        let values = vec![unit.of(count, elapsed.wall)];
        Self { values, cpu_us: Some(elapsed.cpu_us(count)), cores: elapsed.cores() }
    }
}

/// One of those that are compared.
pub(crate) struct Side<'s> {
    name: String,
    run: Box<dyn Fn() -> LocalBoxFuture<'s, Option<Round>> + 's>,
}

impl<'s> Side<'s> {
    /// `run` is one round.
    pub(crate) fn new<F>(name: impl Into<String>, run: impl Fn() -> F + 's) -> Self
    where
        F: Future<Output = Round> + 's,
    {
        Self::optional(name, move || run().map(Some))
    }

    /// A side that may lack the case: `None`, and it is left out.
    pub(crate) fn optional<F>(name: impl Into<String>, run: impl Fn() -> F + 's) -> Self
    where
        F: Future<Output = Option<Round>> + 's,
    {
        Self { name: name.into(), run: Box::new(move || run().boxed_local()) }
    }
}

/// What is compared.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    pub(crate) scenario: String,
    pub(crate) case: String,
    pub(crate) metrics: Vec<(&'static str, Unit)>,
    pub(crate) rounds: usize,
}

impl Comparison {
    /// Runs a warm-up of each side, then interleaved rounds of all. Prints a line for each figure; the first side
    /// is the baseline.
    pub(crate) async fn run(&self, sides: Vec<Side<'_>>) {
        let mut measured = Vec::with_capacity(sides.len());
        for side in sides {
            if (side.run)().await.is_some() {
                let values = vec![Series::default(); self.metrics.len()];
                let (cpu, cores) = (Series::default(), Series::default());
                measured.push(Measured { side, values, cpu, cores });
            }
        }
        for _ in 0..self.rounds {
            for measured in &mut measured {
                measured.round().await;
            }
        }
        for metric in 0..self.metrics.len() {
            let line = self.line(metric, &measured);
            println!("{}", serde_json::to_string(&line).expect("a line"));
        }
    }

    fn line(&self, metric: usize, measured: &[Measured<'_>]) -> Line {
        let (name, unit) = self.metrics[metric];
        let base = measured.first().map(|base| base.values[metric].clone()).unwrap_or_default();
        Line {
            scenario: self.scenario.clone(),
            case: self.case.clone(),
            metric: name.to_owned(),
            unit: unit.name().to_owned(),
            rounds: self.rounds,
            load_average: load_average(),
            sides: measured.iter().map(|side| side.line(metric, &base)).collect(),
        }
    }
}

struct Measured<'s> {
    side: Side<'s>,
    values: Vec<Series>,
    cpu: Series,
    cores: Series,
}

impl Measured<'_> {
    async fn round(&mut self) {
        let round = (self.side.run)().await.expect("a side that had the case in its warm-up");
        for (series, value) in self.values.iter_mut().zip(round.values) {
            series.push(value);
        }
        if let Some(cpu) = round.cpu_us {
            self.cpu.push(cpu);
        }
        if let Some(cores) = round.cores {
            self.cores.push(cores);
        }
    }

    fn line(&self, metric: usize, base: &Series) -> SideLine {
        let figures = &self.values[metric];
        let (least, most) = figures.spread();
        let median = |of: &Series| (!of.is_empty()).then(|| line::round(of.median()));
        SideLine {
            side: self.side.name.clone(),
            median: line::round(figures.median()),
            least: line::round(least),
            most: line::round(most),
            cpu_us: median(&self.cpu),
            cores: median(&self.cores),
            ratio: (figures.ratio(base) * 1_000.0).round() / 1_000.0,
            tie: figures.is_tie(base),
        }
    }
}
