//! Tests that the error texts and log lines of the manual are those of the code.

use super::{code, files, read, rows};

/// The files with the remedies for a connection that fails; those begin with `: ` or `; `.
const REMEDIES: [&str; 3] = [
    "crates/cqrs-amqp/src/connect/dial.rs",
    "crates/cqrs-amqp/src/error.rs",
    "crates/cqrs-kafka/src/health.rs",
];

/// The code of all crates, with texts that span lines joined.
fn sources() -> String {
    let crates = [
        "cqrs-core",
        "cqrs-kafka",
        "cqrs-amqp",
        "cqrs-config",
        "cqrs-protobuf",
        "cqrs-schema-registry",
        "cqrs-outbox",
        "cqrs-testkit",
    ];
    joined(&crates.map(code).concat())
}

fn joined(text: &str) -> String {
    let mut lines = text.lines().peekable();
    let mut joined = String::new();
    while let Some(line) = lines.next() {
        match line.strip_suffix('\\') {
            Some(start) if lines.peek().is_some() => {
                joined += start;
                // The rest of the text is at the start of the next line.
                for next in lines.by_ref() {
                    let next = next.trim_start();
                    match next.strip_suffix('\\') {
                        Some(more) => joined += more,
                        None => {
                            joined += next;
                            break;
                        }
                    }
                }
            }
            _ => joined += line,
        }
        joined.push('\n');
    }
    joined.replace("\\\"", "\"").replace("{{", "{").replace("}}", "}")
}

/// What of `text` is not in the code; `…` stands for what differs from case to case.
fn unknown<'a>(text: &'a str, sources: &str) -> Vec<&'a str> {
    text.split('…')
        .map(str::trim)
        .filter(|part| part.len() > 3 && !sources.contains(part))
        .collect()
}

#[test]
fn every_error_of_troubleshooting_is_in_the_code() {
    let (page, sources) = (read("docs/troubleshooting.md"), sources());
    let headings: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    assert!(headings.len() > 20, "{} errors", headings.len());
    let gone: Vec<_> = headings.iter().flat_map(|text| unknown(text, &sources)).collect();
    assert!(gone.is_empty(), "texts that no code has: {gone:#?}");
}

#[test]
fn every_remedy_of_a_failed_connection_has_a_heading() {
    let page = read("docs/troubleshooting.md");
    let headings: Vec<_> = page.lines().filter(|line| line.starts_with("### `")).collect();
    for file in REMEDIES {
        let code = read(file);
        let code = joined(code.split("#[cfg(test)]").next().expect("code"));
        let texts = code.split('"').filter(|text| text.starts_with(": ") || text.starts_with("; "));
        // Comments and code between two texts are no text.
        let remedies: Vec<_> = texts.filter(|text| !text.contains(['\n', '{'])).collect();
        assert!(remedies.len() > 1, "{file}: {remedies:?}");
        for remedy in remedies {
            // What several have in common stands in one heading.
            let said =
                remedy.split("; ").last().expect("a part").trim_start_matches([':', ';', ' ']);
            let found = headings.iter().any(|heading| heading.contains(said));
            assert!(found, "{file}: no heading has {said:?}");
        }
    }
}

#[test]
fn every_log_line_of_the_page_is_in_the_code() {
    let (page, sources) = (read("docs/how-to/logging.md"), sources());
    let rows = rows(&page);
    let lines: Vec<_> =
        rows.iter().filter(|row| row.len() == 3 && row[1].starts_with('`')).collect();
    assert!(lines.len() > 20, "{} lines", lines.len());
    let gone: Vec<_> =
        lines.iter().flat_map(|row| unknown(row[1].trim_matches('`'), &sources)).collect();
    assert!(gone.is_empty(), "lines that no code has: {gone:#?}");
}

#[test]
fn unknown_text_is_found_whatever_surrounds_it() {
    let sources = "a text with {count} parts";
    assert!(unknown("a text with … parts", sources).is_empty());
    assert_eq!(unknown("a text with … pieces", sources), ["pieces"]);
}

#[test]
fn every_test_that_the_manual_names_exists() {
    let names = read("docs/reference/python.md");
    let tests: String = [files("crates", ".rs"), files("integration-tests", ".rs")]
        .concat()
        .into_iter()
        .map(read)
        .collect();
    let (_, section) = names.split_once("which test says so\n").expect("the section");
    let section = section.split("\n[^").next().expect("what stands before the footnotes");
    let names = super::quoted(section).into_iter().filter(|name| name.contains('_'));
    let names =
        names.filter(|name| name.matches('_').count() > 2 && !name.contains(['=', ' ', '(']));
    let gone: Vec<_> =
        names.filter(|name| !name.starts_with("max_") && !tests.contains(name)).collect();
    assert!(gone.is_empty(), "tests that are gone: {gone:#?}");
}
