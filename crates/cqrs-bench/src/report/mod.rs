//! `report`: makes Markdown tables and SVG plots of the lines that the scenarios print.

mod page;
mod plot;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use self::page::Page;
use crate::measure::Line;

#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// Files of lines, as the scenarios print them.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// A page to write the tables and plots into, between `<!-- figures: SCENARIO -->` and `<!-- /figures -->`. The
    /// plots are files beside it, in a directory of its name. Without a page the tables are printed.
    #[arg(long)]
    page: Option<PathBuf>,
    /// A directory for the plots, without a page.
    #[arg(long, conflicts_with = "page")]
    plot: Option<PathBuf>,
}

/// The lines of each scenario, in the order of the files. A later line replaces one of the same case and metric.
#[derive(Default)]
struct Results(BTreeMap<String, Vec<Line>>);

impl Results {
    fn add(&mut self, line: Line) {
        let lines = self.0.entry(line.scenario.clone()).or_default();
        let same = |known: &&mut Line| known.case == line.case && known.metric == line.metric;
        match lines.iter_mut().find(same) {
            Some(known) => *known = line,
            None => lines.push(line),
        }
    }

    fn read(files: &[PathBuf]) -> Result<Self, String> {
        let mut results = Self::default();
        for file in files {
            let text =
                fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            // Other lines are what the outbox's scenarios print.
            for line in text.lines().filter(|line| line.starts_with('{')) {
                let line = serde_json::from_str(line)
                    .map_err(|error| format!("{}: {line}: {error}", file.display()))?;
                results.add(line);
            }
        }
        Ok(results)
    }
}

/// # Errors
/// If a file cannot be read or written, or the page has a block without an end.
pub(crate) fn run(report: &Report) -> Result<(), String> {
    let results = Results::read(&report.files)?;
    if let Some(path) = &report.page {
        return Page::read(path)?.write(&results);
    }
    for (scenario, lines) in &results.0 {
        println!("\n{scenario}\n\n{}", table::table(lines));
    }
    if let Some(directory) = &report.plot {
        page::draw(directory, results.0.iter().map(|(name, lines)| (name.as_str(), &lines[..])))?;
    }
    Ok(())
}

/// A figure with commas between thousands, and digits after the point only where it is small.
fn number(figure: f64) -> String {
    if figure.abs() < 100.0 {
        let digits = if figure.abs() < 10.0 { 2 } else { 1 };
        return format!("{figure:.digits$}");
    }
    let whole = format!("{figure:.0}");
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::SideLine;

    pub(super) fn line(case: &str, metric: &str, medians: &[(&str, f64)]) -> Line {
        let side = |&(side, median): &(&str, f64)| SideLine {
            side: side.to_owned(),
            median,
            least: median * 0.9,
            most: median * 1.1,
            cpu_us: Some(1.25),
            cores: None,
            ratio: median / medians[0].1,
            tie: false,
        };
        Line {
            scenario: "publish-kafka".to_owned(),
            case: case.to_owned(),
            metric: metric.to_owned(),
            unit: "msg/s".to_owned(),
            rounds: 9,
            load_average: 0.5,
            sides: medians.iter().map(side).collect(),
        }
    }

    #[test]
    fn later_line_replaces_its_case() {
        let mut results = Results::default();
        results.add(line("a", "", &[("raw", 1.0)]));
        results.add(line("b", "", &[("raw", 2.0)]));
        results.add(line("a", "", &[("raw", 3.0)]));
        let medians: Vec<_> =
            results.0["publish-kafka"].iter().map(|line| line.sides[0].median).collect();
        assert_eq!(medians, [3.0, 2.0]);
    }

    #[test]
    fn thousands_have_commas() {
        let figures = [0.123, 12.34, 123.4, 1_234.0, 1_234_567.0].map(number);
        assert_eq!(figures, ["0.12", "12.3", "123", "1,234", "1,234,567"]);
    }
}
