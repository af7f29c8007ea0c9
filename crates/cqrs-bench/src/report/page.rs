//! [`Page`]: a page of the manual whose blocks of figures are replaced.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Results, plot, table};
use crate::measure::Line;

const BEGIN: &str = "<!-- figures: ";
const END: &str = "<!-- /figures -->";

pub(super) struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// Replaces the blocks that `results` have, and draws their plots.
    pub(super) fn write(self, results: &Results) -> Result<(), String> {
        let name = self.path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let mut drawn = Vec::new();
        let text = replace(&self.text, name, |scenario| {
            let lines = results.0.get(scenario)?;
            drawn.push((scenario.to_owned(), &lines[..]));
            Some(table::table(lines))
        })?;
        draw(&self.path.with_extension(""), drawn.iter().map(|(name, lines)| (&**name, *lines)))?;
        fs::write(&self.path, text).map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

/// Writes a plot for each scenario into `directory`.
pub(super) fn draw<'l>(
    directory: &Path,
    scenarios: impl Iterator<Item = (&'l str, &'l [Line])>,
) -> Result<(), String> {
    let failed = |error| format!("{}: {error}", directory.display());
    fs::create_dir_all(directory).map_err(failed)?;
    for (scenario, lines) in scenarios {
        let file = directory.join(format!("{scenario}.svg"));
        fs::write(file, plot::plot(lines)).map_err(failed)?;
    }
    Ok(())
}

/// `text` with the blocks replaced for which `table` has one. `directory` has the plots.
fn replace(
    text: &str,
    directory: &str,
    mut table: impl FnMut(&str) -> Option<String>,
) -> Result<String, String> {
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some((before, block)) = rest.split_once(BEGIN) {
        let (scenario, block) =
            block.split_once(" -->").ok_or("a block's first line has no end")?;
        let (old, after) =
            block.split_once(END).ok_or_else(|| format!("the block {scenario} has no end"))?;
        replaced.push_str(&format!("{before}{BEGIN}{scenario} -->"));
        match table(scenario) {
            Some(table) => {
                let plot = format!("![{scenario}]({directory}/{scenario}.svg)");
                let command = format!("Made by `scripts/bench {scenario}`.");
                replaced.push_str(&format!("\n{plot}\n\n{table} {command}\n"));
            }
            None => replaced.push_str(old),
        }
        replaced.push_str(END);
        rest = after;
    }
    replaced.push_str(rest);
    Ok(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_with_results_are_replaced() {
        let page = "a\n<!-- figures: x -->\nold\n<!-- /figures -->\nb\n<!-- figures: y -->\nkept\n\
                    <!-- /figures -->\nc\n";
        let replaced =
            replace(page, "performance", |scenario| (scenario == "x").then(|| "new".to_owned()));
        let replaced = replaced.unwrap();
        assert_eq!(
            replaced,
            "a\n<!-- figures: x -->\n![x](performance/x.svg)\n\nnew Made by `scripts/bench x`.\n<!-- /figures -->\nb\n\
             <!-- figures: y -->\nkept\n<!-- /figures -->\nc\n"
        );
        // Once more gives the same.
        let again = replace(&replaced, "performance", |scenario| {
            (scenario == "x").then(|| "new".to_owned())
        });
        assert_eq!(again.unwrap(), replaced);
        assert!(replace("<!-- figures: x -->\n", "performance", |_| None).is_err());
    }
}
