//! Fuzz target of the JSON codec.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cqrs_fuzz::json(bytes));
