//! Compile-fail tests: each file in `ui` must fail to compile with the output beside it.
//!
//! Parts of the output are the compiler's and change with its version: run with `TRYBUILD=overwrite` to
//! update them, and review the difference.

#[test]
fn misuse_says_what_to_write() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
