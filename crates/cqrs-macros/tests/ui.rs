//! What misuse looks like: each file in `ui` must fail to compile, with the words beside it.
//!
//! Some of the words are the compiler's own and change with its version: run with
//! `TRYBUILD=overwrite` to take the new ones, and read the difference.

#[test]
fn misuse_says_what_to_write() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
