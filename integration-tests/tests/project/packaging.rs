//! What a user's build gets: no broker client and no C unless a feature asks for it.

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

/// Whether a package of this name is among them.
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
