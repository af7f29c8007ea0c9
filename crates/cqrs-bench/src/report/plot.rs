//! The plot of one scenario: a bar for each side of each case, as SVG.

use std::fmt::Write as _;

use super::number;
use crate::measure::{Line, SideLine};

const WIDTH: f64 = 760.0;
/// Where the bars begin, and their greatest length.
const LEFT: f64 = 190.0;
const LENGTH: f64 = 440.0;
const ROW: f64 = 22.0;
const HEAD: f64 = 30.0;
/// Sides that are further apart than this are drawn by their logarithm.
const FAR: f64 = 50.0;

/// Colours for light and dark pages; the second one is ours.
const STYLE: &str = "\
text { font: 13px sans-serif; fill: #333 } .case { font-weight: bold } .value { font-size: 12px }
.bar { fill: #9aa5b1 } .bar.ours { fill: #2f6fb0 } .spread { stroke: #333; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .bar { fill: #77818c } .bar.ours { fill: #5b9bd9 } .spread { stroke: #ddd }
}";

/// Maps figures of one case to lengths.
struct Scale {
    least: f64,
    most: f64,
    is_log: bool,
}

impl Scale {
    fn new(sides: &[SideLine]) -> Self {
        let most = sides.iter().map(|side| side.most).fold(f64::MIN_POSITIVE, f64::max);
        let least = sides.iter().map(|side| side.least).fold(most, f64::min);
        Self { least, most, is_log: least > 0.0 && most / least > FAR }
    }

    fn length(&self, figure: f64) -> f64 {
        let share = if self.is_log {
            // The shortest bar is a tenth of the longest.
            0.1 + 0.9 * (figure / self.least).ln() / (self.most / self.least).ln()
        } else {
            figure / self.most
        };
        (share * LENGTH).max(1.0)
    }
}

pub(super) fn plot(lines: &[Line]) -> String {
    let rows: usize = lines.iter().map(|line| line.sides.len()).sum();
    let height = lines.len() as f64 * HEAD + rows as f64 * ROW + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\">\n<style>\n{STYLE}\n</style>\n"
    );
    let mut top = 0.0;
    for line in lines {
        let scale = Scale::new(&line.sides);
        let case = escaped(&caption(line, &scale));
        let y = top + 20.0;
        let _to_a_string = writeln!(svg, "<text class=\"case\" x=\"4\" y=\"{y}\">{case}</text>");
        top += HEAD;
        for side in &line.sides {
            bar(&mut svg, top, side, &scale);
            top += ROW;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn caption(line: &Line, scale: &Scale) -> String {
    let metric = if line.metric.is_empty() { String::new() } else { format!(", {}", line.metric) };
    let better = if line.unit == "msg/s" { "" } else { ", less is better" };
    let log = if scale.is_log { ", logarithmic" } else { "" };
    format!("{}{metric}: {}{better}{log}", line.case, line.unit)
}

fn bar(svg: &mut String, top: f64, side: &SideLine, scale: &Scale) {
    let class = if side.side == "ours" { "bar ours" } else { "bar" };
    let (length, middle) = (scale.length(side.median), top + ROW / 2.0);
    let [from, to] = [side.least, side.most].map(|figure| LEFT + scale.length(figure));
    let _to_a_string = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
         <rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\"/>\n\
         <line class=\"spread\" x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{to:.1}\" y2=\"{middle}\"/>\n\
         <text class=\"value\" x=\"{:.1}\" y=\"{}\">{}</text>\n",
        LEFT - 8.0,
        middle + 4.5,
        escaped(&side.side),
        top + 2.0,
        ROW - 4.0,
        to.max(LEFT + length) + 6.0,
        middle + 4.5,
        number(side.median),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let line = line("a < b", "", &[("raw", 100.0), ("ours", 50.0)]);
        let scale = Scale::new(&line.sides);
        assert!((scale.length(55.0) * 2.0 - scale.length(110.0)).abs() < 1e-9);
        let svg = plot(&[line]);
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains("a &lt; b: msg/s"));
    }

    #[test]
    fn far_sides_are_drawn_by_logarithm() {
        let line = line("a", "", &[("raw", 30.0), ("python", 30_000.0)]);
        let scale = Scale::new(&line.sides);
        assert!(scale.is_log);
        assert!(scale.length(30.0) > LENGTH * 0.1 && scale.length(33_000.0) <= LENGTH + 1e-9);
    }
}
