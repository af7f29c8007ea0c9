//! Tests that links and anchors lead somewhere, and that every page is in the table of contents.

use super::{files, prose, read, root};

const SUMMARY: &str = "docs/SUMMARY.md";

/// What is beside the manual and is no page of it.
const NOT_PAGES: [&str; 2] = [SUMMARY, "docs/upstream-lapin.md"];

/// All Markdown of the repository, and what is made for assistants.
fn documents() -> Vec<String> {
    let mut all = files("docs", ".md");
    all.extend(
        files("crates", "README.md").into_iter().filter(|path| path != "crates/cqrs/README.md"),
    );
    all.extend(["README.md", "CONTRIBUTING.md", "AGENTS.md", "llms.txt"].map(str::to_owned));
    all
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors(text: &str) -> Vec<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

/// The targets of links and of link definitions outside of code.
fn targets(text: &str) -> Vec<String> {
    let prose = prose(text);
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let definitions = prose.lines().filter(|line| line.starts_with('[') && !line.starts_with("[^"));
    let definitions = definitions.filter_map(|line| line.split_once("]: ")).map(|(_, to)| to);
    inline.chain(definitions).map(|target| target.trim().to_owned()).collect()
}

#[test]
fn every_link_and_anchor_exists() {
    let mut wrong = Vec::new();
    for document in documents() {
        let folder = root().join(&document).parent().expect("a folder").to_owned();
        for target in targets(&read(&document)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, fragment) = target.split_once('#').unwrap_or((&target, ""));
            let file = if path.is_empty() { root().join(&document) } else { folder.join(path) };
            let found = file.exists()
                && (fragment.is_empty()
                    || anchors(&read(&file)).iter().any(|anchor| anchor == fragment));
            if !found {
                wrong.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn every_page_is_in_the_contents() {
    let summary = targets(&read(SUMMARY));
    for page in files("docs", ".md") {
        let name = page.strip_prefix("docs/").expect("a page");
        let listed = summary.iter().any(|target| target == name);
        assert!(listed || NOT_PAGES.contains(&page.as_str()), "{page} is not in {SUMMARY}");
    }
}

/// The README is rustdoc's front page as well. There `links.md` says where its links lead.
#[test]
fn links_of_the_readme_have_a_place_in_rustdoc() {
    let (readme, in_rustdoc) = (read("README.md"), read("crates/cqrs/links.md"));
    let definitions = |text: &str| {
        let pairs = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
        pairs.map(|(name, to)| (name.to_owned(), to.to_owned())).collect::<Vec<_>>()
    };
    let place = |to: &str| match to.strip_prefix("docs/") {
        Some(page) => format!("../manual/{}", page.replace(".md", ".html")),
        None => format!("../{to}"),
    };
    let expected: Vec<_> =
        definitions(&readme).iter().map(|(name, to)| (name.clone(), place(to))).collect();
    assert_eq!(definitions(&in_rustdoc), expected);

    let inline = prose(&readme);
    let inline = inline.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for target in inline {
        assert!(target.contains("://"), "write the link to {target} by reference");
    }
}
