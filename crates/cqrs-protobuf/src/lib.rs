//! Protobuf bodies for notification events, on [prost](https://docs.rs/prost).
