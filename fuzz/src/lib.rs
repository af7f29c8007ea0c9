//! The properties of any received bytes: no panic, no more memory than the bytes account
//! for, and what is read is written and read again as the same.
//!
//! `scripts/fuzz` searches for bytes that break it; the tests run what earlier searches kept.

mod frame;
mod json;
mod protobuf;

pub use frame::frame;
pub use json::json;
pub use protobuf::protobuf;

/// Runs `decode`, and fails when it held more memory at once than `per_byte` bytes for each of `input`.
fn bounded<T>(input: &[u8], per_byte: u64, decode: impl FnOnce() -> T) -> T {
    // Errors with their texts, a new event's frame.
    const BASE: u64 = 4 << 10;
    let mut decoded = None;
    let used = allocation_counter::measure(|| decoded = Some(decode())).bytes_max;
    let bound = BASE + per_byte * input.len() as u64;
    assert!(used <= bound, "{used} bytes held for an input of {}", input.len());
    decoded.expect("it ran")
}
