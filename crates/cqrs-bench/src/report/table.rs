//! The table of one scenario: a row for each side of each case.

use std::fmt::Write as _;

use super::number;
use crate::measure::{Line, SideLine};

/// In Markdown, with a last line about the rounds.
pub(super) fn table(lines: &[Line]) -> String {
    let Some(first) = lines.first() else { return String::new() };
    let mut metrics: Vec<&str> = Vec::new();
    for line in lines {
        if !metrics.contains(&line.metric.as_str()) {
            metrics.push(&line.metric);
        }
    }
    let mut text = match metrics.as_slice() {
        [_] => format!(
            "| | | {} | least to most | ratio | CPU us |\n|---|---|---|---|---|---|\n",
            first.unit
        ),
        metrics => {
            let names: Vec<_> =
                metrics.iter().map(|metric| format!("{metric}, {}", first.unit)).collect();
            let rule = "---|".repeat(names.len());
            format!("| | | {} | CPU us |\n|---|---|{rule}---|\n", names.join(" | "))
        }
    };
    for line in lines.iter().filter(|line| line.metric == metrics[0]) {
        for (place, side) in line.sides.iter().enumerate() {
            let case = if place == 0 { line.case.as_str() } else { "" };
            let figures = match metrics.as_slice() {
                [_] => with_spread(place, side),
                metrics => by_metric(lines, line, place, metrics),
            };
            let cpu = side.cpu_us.map(number).unwrap_or_default();
            let _to_a_string = writeln!(text, "| {case} | {} | {figures} | {cpu} |", side.side);
        }
    }
    let loads = lines.iter().map(|line| line.load_average);
    let load = loads.fold(0.0, f64::max);
    let _to_a_string =
        write!(text, "\nMedians of {} rounds; load average up to {load:.1}.", first.rounds);
    text
}

fn with_spread(place: usize, side: &SideLine) -> String {
    let spread = format!("{} to {}", number(side.least), number(side.most));
    let ratio = match (place, side.tie) {
        (0, _) => String::new(),
        (_, true) => format!("{:.2}, a tie", side.ratio),
        (_, false) => format!("{:.2}", side.ratio),
    };
    format!("{} | {spread} | {ratio}", number(side.median))
}

fn by_metric(lines: &[Line], of: &Line, place: usize, metrics: &[&str]) -> String {
    let median = |metric: &&str| {
        let mut same = lines.iter().filter(|line| line.case == of.case);
        let line = same.find(|line| line.metric == **metric);
        line.and_then(|line| line.sides.get(place)).map(|side| number(side.median))
    };
    let medians: Vec<_> = metrics.iter().map(|metric| median(metric).unwrap_or_default()).collect();
    medians.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;

    #[test]
    fn each_side_has_a_row() {
        let lines = [line("JSON, 256 B", "", &[("raw", 100_000.0), ("ours", 98_000.0)])];
        let expected = "\
| | | msg/s | least to most | ratio | CPU us |
|---|---|---|---|---|---|
| JSON, 256 B | raw | 100,000 | 90,000 to 110,000 |  | 1.25 |
|  | ours | 98,000 | 88,200 to 107,800 | 0.98 | 1.25 |

Medians of 9 rounds; load average up to 0.5.";
        assert_eq!(table(&lines), expected);
    }

    #[test]
    fn several_metrics_are_columns() {
        let lines = [
            line("Kafka", "p50", &[("raw", 10.0), ("ours", 11.0)]),
            line("Kafka", "p99", &[("raw", 50.0), ("ours", 70.0)]),
        ];
        let rows: Vec<_> = table(&lines).lines().map(str::to_owned).collect();
        assert_eq!(rows[0], "| | | p50, msg/s | p99, msg/s | CPU us |");
        assert_eq!(rows[3], "|  | ours | 11.0 | 70.0 | 1.25 |");
    }
}
