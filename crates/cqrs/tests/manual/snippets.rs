//! Tests that every Rust snippet of the manual is compiled: as a doctest of `cqrs`, or from a program's file.

use super::{files, read, root};

/// The fenced blocks of a text: language and code.
fn blocks(text: &str) -> Vec<(&str, &str)> {
    let blocks = text.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.split_once('\n')).collect()
}

#[test]
fn every_rust_snippet_is_compiled() {
    let doctests = read("crates/cqrs/src/manual.rs");
    for page in files("docs", ".md") {
        let text = read(&page);
        let rust: Vec<_> = blocks(&text)
            .into_iter()
            .filter(|(language, _)| language.starts_with("rust"))
            .collect();
        let included = |(_, code): &&(&str, &str)| code.trim_start().starts_with("{{#include ");
        let by_include = rust.iter().filter(included).count();
        match by_include {
            0 => assert!(
                rust.is_empty() || doctests.contains(&format!("/../../{page}\"")),
                "{page} is not in crates/cqrs/src/manual.rs"
            ),
            some => {
                assert_eq!(some, rust.len(), "{page}: a page has doctests or includes, not both")
            }
        }
        for (language, _) in rust {
            assert!(!language.contains("ignore"), "{page}: a snippet is not compiled");
        }
    }
}

#[test]
fn every_include_is_a_program_that_tests_build() {
    let examples = read("examples/Cargo.toml");
    for page in files("docs", ".md") {
        let text = read(&page);
        for include in text.split("{{#include ").skip(1) {
            let path = include.split("}}").next().expect("a path");
            let path = path.split(':').next().expect("a path");
            let file = root().join(&page).parent().expect("a folder").join(path);
            let file =
                file.canonicalize().unwrap_or_else(|error| panic!("{page}: {path}: {error}"));
            let file = file.strip_prefix(root()).expect("in the repository");
            let file = file.to_str().expect("UTF-8");
            let built = examples.contains(&format!("path = \"../{file}\""))
                || file.strip_prefix("examples/").is_some_and(|name| examples.contains(name));
            assert!(built, "{page}: no test builds {file}");
        }
    }
}

#[test]
fn every_example_is_linked_from_a_page() {
    let pages: String = files("docs", ".md").into_iter().map(read).collect();
    for example in files("examples", ".rs").iter().filter(|path| path.matches('/').count() == 1) {
        assert!(pages.contains(&format!("(../../{example})")), "no page links to {example}");
    }
}

/// The Cargo.toml of a tutorial page needs nothing that the examples, which are built, do not have.
#[test]
fn dependencies_of_the_tutorial_are_those_built() {
    let examples: toml::Table = read("examples/Cargo.toml").parse().expect("TOML");
    let known = examples["dependencies"].as_table().expect("dependencies");
    let mut seen = 0;
    for page in files("docs/tutorial", ".md") {
        let text = read(&page);
        for (_, manifest) in blocks(&text).into_iter().filter(|(language, _)| *language == "toml") {
            let manifest: toml::Table =
                manifest.parse().unwrap_or_else(|error| panic!("{page}: {error}"));
            for table in ["dependencies", "dev-dependencies"] {
                let Some(used) = manifest.get(table).and_then(|table| table.as_table()) else {
                    continue;
                };
                for (name, value) in used {
                    assert!(known.contains_key(name), "{page}: {name}");
                    let ours = value.get("path").and_then(|path| path.as_str());
                    let ours = ours.and_then(|path| path.strip_prefix("../cqrs/"));
                    assert!(
                        !name.starts_with("cqrs")
                            || ours.is_some_and(|path| root().join(path).exists())
                    );
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 4, "{seen} dependencies");
}
