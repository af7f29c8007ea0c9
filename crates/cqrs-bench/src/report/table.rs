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
    let mut columns: Vec<String> = vec![String::new(), String::new()];
    match metrics.as_slice() {
        [_] => columns.extend([&first.unit, "least to most", "ratio"].map(str::to_owned)),
        metrics => columns.extend(metrics.iter().map(|metric| format!("{metric}, {}", first.unit))),
    }
    columns.push("CPU us".to_owned());
    // Results of an earlier harness have none.
    let has_cores = lines.iter().flat_map(|line| &line.sides).any(|side| side.cores.is_some());
    if has_cores {
        columns.push("cores".to_owned());
    }
    let mut text = format!("|{}\n|{}\n", cells(&columns), "---|".repeat(columns.len()));
    for line in lines.iter().filter(|line| line.metric == metrics[0]) {
        for (place, side) in line.sides.iter().enumerate() {
            let case = if place == 0 { line.case.as_str() } else { "" };
            let figures = match metrics.as_slice() {
                [_] => with_spread(line, place, side),
                metrics => by_metric(lines, line, place, metrics),
            };
            let cpu = side.cpu_us.map(number).unwrap_or_default();
            let cores = side.cores.map(number).unwrap_or_default();
            let cores = if has_cores { format!(" {cores} |") } else { String::new() };
            let _to_a_string =
                writeln!(text, "| {case} | {} | {figures} | {cpu} |{cores}", side.side);
        }
    }
    let loads = lines.iter().map(|line| line.load_average);
    let load = loads.fold(0.0, f64::max);
    let _to_a_string = write!(text, "\n{}; load average up to {load:.1}.", rounds(first.rounds));
    text
}

fn cells(texts: &[String]) -> String {
    let cell = |text: &String| if text.is_empty() { " |".to_owned() } else { format!(" {text} |") };
    texts.iter().map(cell).collect()
}

fn rounds(count: usize) -> String {
    if count == 1 { "One round".to_owned() } else { format!("Medians of {count} rounds") }
}

fn with_spread(line: &Line, place: usize, side: &SideLine) -> String {
    let spread = format!("{} to {}", number(side.least), number(side.most));
    let ratio = match (place, side.tie) {
        (0, _) => String::new(),
        (_, true) => format!("{:.2}, a tie", side.ratio),
        (_, false) => format!("{:.2}", side.ratio),
    };
    let gain = gain_over(line, place).map(|gain| format!("; ours {}x", number(gain)));
    format!("{} | {spread} | {ratio}{}", number(side.median), gain.unwrap_or_default())
}

/// How many times as good ours is as a side that comes after it.
fn gain_over(line: &Line, place: usize) -> Option<f64> {
    let ours = line.sides.iter().take(place).find(|side| side.side == "ours")?;
    let ratio = ours.median / line.sides.get(place)?.median;
    Some(if line.unit == "msg/s" { ratio } else { 1.0 / ratio })
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
    fn busy_cores_are_a_column_if_they_were_measured() {
        let mut line = line("a", "", &[("raw", 50.0), ("ours", 100.0)]);
        line.sides[1].cores = Some(1.5);
        let table = table(&[line]);
        let rows: Vec<_> = table.lines().collect();
        assert_eq!(rows[0], "| | | msg/s | least to most | ratio | CPU us | cores |");
        assert_eq!(rows[1], "|---|---|---|---|---|---|---|");
        assert!(rows[2].ends_with("| 1.25 |  |") && rows[3].ends_with("| 1.25 | 1.50 |"));
    }

    #[test]
    fn other_framework_is_compared_with_ours() {
        let mut line = line("a", "", &[("raw", 50.0), ("ours", 100.0), ("other", 2_000.0)]);
        assert!(table(&[line.clone()]).contains("| 40.00; ours 0.05x |"));
        line.unit = "ns/call".to_owned();
        assert!(table(&[line]).contains("| 40.00; ours 20.0x |"));
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
