//! [`Line`]: the result of one comparison, as a line of JSON; written by the scenarios, read by `report`.

use serde::{Deserialize, Serialize};

/// One figure of one case, for each side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) scenario: String,
    /// What the sides had in common: codec, size, partitions, tasks or concurrency.
    pub(crate) case: String,
    /// Which figure, where a case has several: `p50`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) metric: String,
    pub(crate) unit: String,
    pub(crate) rounds: usize,
    /// The machine's load of the minute before.
    pub(crate) load_average: f64,
    /// The first one is the baseline.
    pub(crate) sides: Vec<SideLine>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SideLine {
    pub(crate) side: String,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// Microseconds of processor time for each message: the median of the rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_us: Option<f64>,
    /// How many processors of the machine were busy: the median of the rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cores: Option<f64>,
    /// The median by the baseline's.
    pub(crate) ratio: f64,
    /// Set if one median is within the other's spread.
    pub(crate) tie: bool,
}

/// The load average of the last minute.
pub(crate) fn load_average() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// `figure` with four significant digits, and no less than its whole part.
pub(crate) fn round(figure: f64) -> f64 {
    let digits = (3 - figure.abs().max(1e-9).log10().floor() as i32).max(0);
    let scale = 10_f64.powi(digits);
    (figure * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_four_digits() {
        let rounded = [0.123_456, 1.234_56, 123.456, 123_456.7].map(round);
        assert_eq!(rounded, [0.1235, 1.235, 123.5, 123_457.0]);
    }
}
