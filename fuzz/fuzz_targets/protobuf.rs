//! Fuzz target of the Protobuf codec.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cqrs_fuzz::protobuf(bytes));
