//! Runs the kept inputs and some random bytes without a fuzzer.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

/// The number of inputs of a target.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is part of the repository") {
        let path = entry.expect("a file").path();
        let bytes = fs::read(&path).expect("a readable file");
        let checked = std::panic::catch_unwind(|| check(&bytes));
        assert!(checked.is_ok(), "{} fails: {bytes:?}", path.display());
        count += 1;
    }
    assert!(count > 20, "{count} inputs in {}", folder.display());
}

#[test]
fn json() {
    replay("json", cqrs_fuzz::json);
}

#[test]
fn protobuf() {
    replay("protobuf", cqrs_fuzz::protobuf);
}

#[test]
fn frame() {
    replay("frame", cqrs_fuzz::frame);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn random_bytes(bytes in any::<Vec<u8>>()) {
        cqrs_fuzz::json(&bytes);
        cqrs_fuzz::protobuf(&bytes);
        cqrs_fuzz::frame(&bytes);
    }
}
