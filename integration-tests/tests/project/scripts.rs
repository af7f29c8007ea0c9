//! Tests of the scripts' safety: they delete nothing that they did not make, check every signature, and
//! pin what they download. None of these tests needs a server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository.
fn root() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).canonicalize().expect("the repository")
}

/// A directory of one test, deleted when it ends.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cqrs-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory of the test");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script with this home directory and nothing of the tests' environment for the scripts.
fn run(script: &str, arguments: &[&str], home: &Path, variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(root().join(script));
    command.args(arguments).env("HOME", home).env("CQRS_BROKERS", "local");
    for variable in ["CQRS_BROKERS_HOME", "CQRS_PEERS_HOME", "XDG_CACHE_HOME", "CQRS_RABBITMQ"] {
        command.env_remove(variable);
    }
    command.envs(variables.iter().copied()).output().expect("the script starts")
}

fn refused(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it was accepted: {said}");
    assert!(said.contains(why), "not refused with {why:?}: {said}");
}

#[test]
fn home_and_its_parents_are_never_state_directories() {
    let home = Directory::new("home");
    fs::write(home.0.join("letter"), "kept").expect("a file");
    let parent = home.0.join("..");
    let through_a_link = Directory::new("links");
    let link = through_a_link.0.join("link");
    std::os::unix::fs::symlink(&home.0, &link).expect("a link");
    for path in [home.0.as_path(), &parent, Path::new("/"), &link] {
        let peers = run("scripts/peers", &["clean"], &home.0, &[("CQRS_PEERS_HOME", path)]);
        refused(&peers, "CQRS_PEERS_HOME is ");
        let brokers = run("scripts/brokers", &["status"], &home.0, &[("CQRS_BROKERS_HOME", path)]);
        refused(&brokers, "CQRS_BROKERS_HOME is ");
    }
    assert_eq!(fs::read_to_string(home.0.join("letter")).expect("still there"), "kept");
}

#[test]
fn directory_without_marker_is_refused() {
    let home = Directory::new("home-of-others");
    let others = home.0.join("documents");
    fs::create_dir(&others).expect("a directory");
    fs::write(others.join("thesis"), "kept").expect("a file");
    let peers = run("scripts/peers", &["clean"], &home.0, &[("CQRS_PEERS_HOME", &others)]);
    refused(&peers, "not made by this script");
    let brokers = run("scripts/brokers", &["down"], &home.0, &[("CQRS_BROKERS_HOME", &others)]);
    refused(&brokers, "not made by this script");
    assert_eq!(fs::read_to_string(others.join("thesis")).expect("still there"), "kept");
    assert_eq!(fs::read_dir(&others).expect("a directory").count(), 1, "something was put there");
}

#[test]
fn clean_deletes_what_the_script_made() {
    let home = Directory::new("home-to-clean");
    let state = home.0.join("state");
    fs::create_dir(&state).expect("a directory");
    fs::write(state.join(".cqrs-state"), "").expect("a marker");
    fs::write(state.join("downloaded"), "x").expect("a file");
    let peers = run("scripts/peers", &["clean"], &home.0, &[("CQRS_PEERS_HOME", &state)]);
    assert!(peers.status.success(), "{}", String::from_utf8_lossy(&peers.stderr));
    assert!(!state.exists() && home.0.exists());
}

#[test]
fn fuzz_target_outside_the_corpus_is_refused() {
    let home = Directory::new("home-of-fuzz");
    refused(&run("scripts/fuzz", &["1", "../.."], &home.0, &[]), "no target ../..");
    refused(&run("scripts/fuzz", &["many"], &home.0, &[]), "RUNS is many");
}

/// Runs lines of bash after the functions of the local servers, with a state directory of its own.
fn with_functions(state: &Path, lines: &str) -> Output {
    let preamble = r#"
        set -euo pipefail
        ROOT=$1 STATE=$2 CERTS=$2/certs RABBITMQ_RELEASE=4
        . "$ROOT/scripts/lib/local.sh"
        claim_state STATE ''
        as_root() { "$@"; }
        apt_install() { echo "apt_install $*"; }
    "#;
    let script = format!("{preamble}\n{lines}");
    let mut command = Command::new("bash");
    command.args(["-c", &script, "test"]).arg(root()).arg(state);
    command.output().expect("bash starts")
}

#[test]
fn debootstrap_never_runs_without_debian_s_keys() {
    let state = Directory::new("state-of-debootstrap");
    let lines = r#"
        debootstrap() { echo "RAN debootstrap"; return 1; }
        RABBITMQ_KEYRING=$STATE/missing.gpg
        rabbitmq_install
    "#;
    let output = with_functions(&state.0, lines);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("debian-archive-keyring"), "the keys are not installed: {said}");
    refused(&output, "signatures cannot be checked");
    let log = fs::read_to_string(state.0.join("rabbitmq/install.log")).unwrap_or_default();
    assert!(!said.contains("RAN") && !log.contains("RAN"), "{said}{log}");
}

#[test]
fn debootstrap_is_told_to_check_the_signature() {
    let state = Directory::new("state-of-signatures");
    let lines = r#"
        unshare() { return 1; }
        env() { echo "RAN $*"; return 1; }
        ! rabbitmq_bootstrap sid "$STATE/rabbitmq.new"
    "#;
    let output = with_functions(&state.0, lines);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ran = said.lines().find(|line| line.starts_with("RAN")).expect("debootstrap ran");
    assert!(ran.contains("debootstrap") && ran.contains("--force-check-gpg"), "{ran}");
    assert!(ran.contains("--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"), "{ran}");
}

#[test]
fn jars_that_differ_from_the_lock_are_refused() {
    let state = Directory::new("state-of-jars");
    let lines = r#"
        mkdir "$STATE/jars"
        cd "$STATE/jars"
        echo one >a.jar
        sha512sum a.jar >"$STATE/lock"
        verified "$STATE/jars" "$STATE/lock"
        echo two >b.jar
        ! verified "$STATE/jars" "$STATE/lock" || { echo "an extra jar passes" >&2; exit 1; }
        rm b.jar
        echo other >a.jar
        ! verified "$STATE/jars" "$STATE/lock" 2>/dev/null || { echo "another jar passes" >&2; exit 1; }
    "#;
    let output = with_functions(&state.0, lines);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn only_state_is_removed() {
    let state = Directory::new("state-to-remove");
    for path in ["$STATE", "/tmp", "$STATE/../x", "$STATE/a/..", ""] {
        let output = with_functions(&state.0, &format!("remove \"{path}\""));
        refused(&output, "will not delete");
    }
    let output = with_functions(&state.0, "mkdir $STATE/a; remove $STATE/a; [[ ! -e $STATE/a ]]");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn private_keys_are_their_owner_s_alone() {
    let directory = Directory::new("certs");
    let made = || {
        let output = Command::new("sh")
            .arg(root().join("scripts/lib/certs.sh"))
            .arg(&directory.0)
            .output()
            .expect("sh starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for name in ["ca.key", "server.key", "client.key", "other-ca.key", "server-keystore.pem"] {
            let mode = fs::metadata(directory.0.join(name)).expect(name).permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name} has mode {mode:o}");
        }
    };
    made();
    // Keys that an earlier version made are kept, and no longer readable.
    let key = directory.0.join("server.key");
    let before = fs::read(&key).expect("a key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("a mode");
    made();
    assert_eq!(fs::read(&key).expect("a key"), before);
}

#[test]
fn downloads_are_pinned() {
    let text = |path: &str| fs::read_to_string(root().join(path)).expect(path);
    let compose = text("docker-compose.yml");
    let images = compose.lines().filter_map(|line| line.trim().strip_prefix("image: "));
    let mut versions = Vec::new();
    for image in images {
        let image = image.split(" #").next().unwrap_or(image);
        let image = image.strip_prefix("${CQRS_RABBITMQ_IMAGE:-").unwrap_or(image);
        let (name, tag) = image.trim_end_matches('}').split_once(':').expect("name:tag");
        let version = tag.split('-').next().unwrap_or(tag);
        // PostgreSQL's releases have two numbers, the others three.
        let enough = if name == "postgres" { 2 } else { 3 };
        assert!(version.split('.').count() >= enough, "{image} floats");
        versions.push((name.to_owned(), tag.to_owned()));
    }
    let version = |name: &str| {
        let mut found = versions.iter().filter(|image| image.0.ends_with(name));
        found.next().unwrap_or_else(|| panic!("no image {name}")).1.clone()
    };
    // The local servers are the same releases, with the digests of what is downloaded.
    for (name, image) in [("kafka", "apache/kafka"), ("registry", "apicurio-registry-mem")] {
        let lock = text(&format!("scripts/lib/{name}-{}.sha512", version(image)));
        assert!(lock.lines().any(|line| !line.starts_with('#') && line.len() > 130), "{lock}");
    }
    assert!(text("scripts/lib/docker.sh").contains(&format!("rabbitmq:{}", version("rabbitmq"))));
    assert!(text("integration-tests/src/containers.rs").contains(&version("rabbitmq")));
    for peer in ["cqrs4", "cqrs5", "faststream", "confluent"] {
        let requirements =
            text(&format!("integration-tests/peers/{peer}.txt")).replace("\\\n", " ");
        for line in requirements.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.contains("==") && line.contains("--hash=sha256:"), "{peer}: {line}");
        }
    }
}
