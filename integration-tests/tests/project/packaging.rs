//! Tests of a user's build: no broker client and no C unless a feature asks for it, and never the
//! packages of others that have our names on the public registry.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The packages that `cqrs` builds with these features, one a line.
fn tree(features: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", "cqrs", "--edges", "normal,build", "--prefix", "none"])
        .args(["--no-default-features", "--features", features])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("package names")
}

/// Set if a package of this name is among them.
fn has(tree: &str, package: &str) -> bool {
    tree.lines().any(|line| line.split(' ').next() == Some(package))
}

#[test]
fn the_default_build_has_no_broker_client_and_no_c() {
    let tree = tree("default");
    assert!(has(&tree, "cqrs-core") && has(&tree, "cqrs-macros"), "{tree}");
    for package in ["rdkafka", "rdkafka-sys", "lapin", "bb8", "openssl-sys", "ring", "cc", "cmake"]
    {
        assert!(!has(&tree, package), "{package} is built by default:\n{tree}");
    }
}

#[test]
fn a_feature_brings_its_own_client_and_no_other() {
    let (kafka, amqp) = (tree("kafka"), tree("amqp"));
    assert!(has(&kafka, "rdkafka") && !has(&kafka, "lapin"), "{kafka}");
    assert!(has(&amqp, "lapin") && !has(&amqp, "rdkafka"), "{amqp}");
    assert!(
        !has(&amqp, "aws-lc-sys") && !has(&amqp, "openssl-sys"),
        "TLS is rustls with ring: {amqp}"
    );
}

/// Runs cargo here; what it prints.
fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn no_crate_can_be_published() {
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 10, "{} packages", packages.len());
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        assert_eq!(package["publish"], serde_json::json!([]), "{name} lacks `publish = false`");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = dependency["name"].as_str().expect("a name");
            let by_path = dependency["path"].is_string() && dependency["req"] == "*";
            assert!(!on.starts_with("cqrs") || by_path, "{name} takes {on} by its version");
        }
    }
}

#[test]
fn every_crate_names_the_oldest_compiler() {
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("JSON");
    for package in metadata["packages"].as_array().expect("packages") {
        assert_eq!(package["rust_version"], "1.95", "{}", package["name"]);
    }
}

/// Set if a line of a manifest or of a shell would fetch one of our names from the registry.
fn fetches_a_namesake(line: &str) -> bool {
    let line = line.trim().trim_start_matches("//!").trim_start_matches("///").trim();
    let by_command = line.contains("cargo add cqrs") || line.contains("cargo install cqrs");
    let key = line.split(['=', ' ', '.']).next().unwrap_or_default();
    let ours = key == "cqrs" || key.starts_with("cqrs-");
    let by_manifest = ours
        && line.split_once('=').is_some_and(|(_, value)| {
            let value = value.trim_start();
            value.starts_with('"') || value.starts_with('{') && value.contains("version")
        });
    // "never `cargo add cqrs`" is no instruction.
    (by_command && !line.to_lowercase().contains("never `cargo add cqrs`")) || by_manifest
}

#[test]
fn no_page_fetches_a_package_of_our_name() {
    assert!(fetches_a_namesake(r#"cqrs = "0.1""#));
    assert!(fetches_a_namesake(r#"//! cqrs-core = { version = "0.1" }"#));
    assert!(fetches_a_namesake("cargo add cqrs"));
    assert!(!fetches_a_namesake(r#"cqrs = { path = "../cqrs/crates/cqrs" }"#));
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut folders = vec![root.to_owned()];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
                continue;
            }
            let is_page = [".md", ".rs", ".toml"].iter().any(|end| name.ends_with(end));
            if !is_page || path.ends_with("project/packaging.rs") {
                continue;
            }
            read += 1;
            let text = fs::read_to_string(&path).expect("text");
            let line = text.lines().find(|line| fetches_a_namesake(line));
            assert_eq!(line, None, "{}", path.display());
        }
    }
    assert!(read > 100, "{read} files");
}
