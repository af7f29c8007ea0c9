//! Tests of the manual: links, options, header names, error texts and snippets agree with the code.

mod links;
mod options;
mod snippets;
mod texts;

use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
fn root() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize().expect("the repository")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below `folder` that end with `end`, as paths from the repository's root.
fn files(folder: &str, end: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root()).expect("in the repository");
            let name = name.to_str().expect("UTF-8").to_owned();
            match path.is_dir() {
                true => folders.push(path),
                false if name.ends_with(end) => found.push(name),
                false => {}
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {end} below {folder}");
    found
}

/// The code of a crate below `crates/`, without unit tests at the ends of files.
fn code(of: &str) -> String {
    let files = files(&format!("crates/{of}/src"), ".rs").into_iter();
    let files = files.filter(|file| !file.contains("/tests"));
    let without_tests =
        |file| read(file).split("#[cfg(test)]\nmod tests").next().map(str::to_owned);
    files.filter_map(without_tests).collect()
}

/// The parts of a Markdown text outside of fenced code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The rows of the tables of a page, as cells.
fn rows(page: &str) -> Vec<Vec<String>> {
    let page = prose(page);
    let rows = page.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells = |row: &str| {
        let row = row.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\0");
        row.split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
    };
    rows.map(cells).collect()
}

/// The texts in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}
