//! Tests that run the programs of the tutorial and compare what they print with its pages.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program of the tutorial, which `cargo test` built beside this test.
fn program(step: u32) -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let target = test.ancestors().nth(2).expect("the target directory");
    target.join("examples").join(format!("tutorial_{step}"))
}

fn output(step: u32) -> String {
    let output = Command::new(program(step)).output().expect("it is built: run `cargo test`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The output that a page shows.
fn shown(page: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/tutorial").join(page);
    let text = std::fs::read_to_string(path).expect("the page");
    let (_, block) = text.split_once("```text\n").expect("an output");
    block.split("```").next().expect("a block").to_owned()
}

#[test]
fn steps_one_and_two_print_what_their_pages_show() {
    assert_eq!(output(1), shown("1-command.md"));
    assert_eq!(output(2), shown("2-domain-event.md"));
}

#[test]
fn step_three_publishes_the_event_of_its_page() {
    let (printed, shown) = (output(3), shown("3-notification.md"));
    // The id and the time differ.
    let parts: Vec<_> = shown.split("019...").flat_map(|part| part.split("2026-...")).collect();
    assert_eq!(parts.len(), 3, "{shown}");
    let mut rest = printed.as_str();
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("no {part} in {printed}"));
        rest = &rest[at + part.len()..];
    }
}

#[cfg(unix)]
#[test]
fn step_four_stops_on_ctrl_c_and_shows_the_dead_letter() {
    let shown = shown("4-consumer.md");
    let mut shipping =
        Command::new(program(4)).stdout(Stdio::piped()).spawn().expect("it is built");
    let mut lines = BufReader::new(shipping.stdout.take().expect("its output"));
    let mut printed = String::new();
    while printed.matches("shipped").count() < 2 {
        assert!(lines.read_line(&mut printed).expect("a line") > 0, "it ended: {printed}");
    }
    let id = shipping.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("kill runs").success());
    lines.read_to_string(&mut printed).expect("its last lines");
    assert!(shipping.wait().expect("it ends").success());
    // Handlers of two keys run at once: their lines come in any order.
    let sorted = |text: &str| {
        let text = text.replace("tutorial_4::", "orders::");
        let mut lines: Vec<_> = text.trim().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&printed), sorted(&shown.replace("^C", "")));
}
