//! Figures of rounds, and the tables that are printed.

/// The figures of one side, one for each round.
#[derive(Debug, Clone, Default)]
pub(super) struct Series(Vec<f64>);

impl Series {
    pub(super) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(super) fn median(&self) -> f64 {
        percentile(&self.0, 0.5)
    }

    fn spread(&self) -> (f64, f64) {
        (percentile(&self.0, 0.0), percentile(&self.0, 1.0))
    }

    /// The median, with the least and the greatest figure of several.
    pub(super) fn text(&self, digits: usize) -> String {
        let (least, most) = self.spread();
        if self.0.len() < 2 {
            return format!("{least:.digits$}");
        }
        format!("{:.digits$} ({least:.digits$} to {most:.digits$})", self.median())
    }

    /// The ratio of the medians to those of `base`; a tie if one median is within the other's spread.
    pub(super) fn against(&self, base: &Self) -> String {
        let within = |one: f64, (least, most): (f64, f64)| least <= one && one <= most;
        let is_tie = within(self.median(), base.spread()) || within(base.median(), self.spread());
        let tie = if is_tie { ", a tie" } else { "" };
        format!("{:.2}x{tie}", self.median() / base.median())
    }
}

/// The figure below which `share` of the figures lie.
pub(super) fn percentile(figures: &[f64], share: f64) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    let place = (figures.len().saturating_sub(1)) as f64 * share;
    figures.get(place.round() as usize).copied().unwrap_or(f64::NAN)
}

/// A table in Markdown.
pub(super) struct Table(Vec<Vec<String>>);

impl Table {
    pub(super) fn new(columns: &[&str]) -> Self {
        Self(vec![columns.iter().map(|name| (*name).to_owned()).collect()])
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    /// Prints it below its title and the load of the machine.
    pub(super) fn print(self, title: &str) {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().next().unwrap_or("unknown").to_owned();
        println!("\n{title} (load average {load})\n");
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for (number, row) in self.0.iter().enumerate() {
            let cells: Vec<_> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            println!("| {} |", cells.join(" | "));
            if number == 0 {
                println!("|{}|", vec!["---"; columns].join("|"));
            }
        }
    }
}
