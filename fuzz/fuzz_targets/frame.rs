//! Fuzz target of the schema frame.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cqrs_fuzz::frame(bytes));
