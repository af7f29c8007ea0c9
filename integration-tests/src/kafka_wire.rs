//! Kafka's protocol for header names that are not UTF-8, which no client library writes or reads.

#![allow(clippy::unwrap_used)] // A helper of tests fails the test.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::servers;

/// Writes one record without a key to partition 0. Blocks.
pub fn produce(topic: &str, body: &[u8], headers: &[(&[u8], &[u8])]) {
    let mut record = vec![0];
    varint(&mut record, 0);
    varint(&mut record, 0);
    varint(&mut record, -1);
    bytes(&mut record, body);
    varint(&mut record, headers.len() as i64);
    for (name, value) in headers {
        bytes(&mut record, name);
        bytes(&mut record, value);
    }
    let mut checked = vec![0; 2];
    checked.extend(0_i32.to_be_bytes());
    for time in [1_700_000_000_000_i64; 2] {
        checked.extend(time.to_be_bytes());
    }
    checked.extend((-1_i64).to_be_bytes());
    checked.extend((-1_i16).to_be_bytes());
    checked.extend((-1_i32).to_be_bytes());
    checked.extend(1_i32.to_be_bytes());
    bytes(&mut checked, &record);
    let mut batch = (-1_i32).to_be_bytes().to_vec();
    batch.push(2);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    let mut request = (-1_i16).to_be_bytes().to_vec();
    request.extend((-1_i16).to_be_bytes());
    request.extend(30_000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    text(&mut request, topic);
    request.extend(1_i32.to_be_bytes());
    request.extend(0_i32.to_be_bytes());
    request.extend((batch.len() as i32 + 12).to_be_bytes());
    request.extend(0_i64.to_be_bytes());
    request.extend((batch.len() as i32).to_be_bytes());
    request.extend(batch);
    let answer = call(0, 3, &request);
    // Topics, its name, partitions, the partition, the error.
    let at = 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[at..at + 2], [0, 0], "the broker takes it");
}

/// The bytes of the batches in partition 0. Blocks.
pub fn fetch(topic: &str) -> Vec<u8> {
    let mut request = (-1_i32).to_be_bytes().to_vec();
    for number in [5_000_i32, 1, 50 << 20] {
        request.extend(number.to_be_bytes());
    }
    request.push(0);
    request.extend(1_i32.to_be_bytes());
    text(&mut request, topic);
    request.extend(1_i32.to_be_bytes());
    request.extend(0_i32.to_be_bytes());
    request.extend(0_i64.to_be_bytes());
    request.extend((50_i32 << 20).to_be_bytes());
    call(1, 4, &request)
}

/// A header as it stands in a record.
pub fn header(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    bytes(&mut wire, name);
    bytes(&mut wire, value);
    wire
}

fn call(api: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(servers::kafka()).unwrap();
    let mut request = api.to_be_bytes().to_vec();
    request.extend(version.to_be_bytes());
    request.extend(7_i32.to_be_bytes());
    text(&mut request, "wire");
    request.extend(body);
    stream.write_all(&(request.len() as i32).to_be_bytes()).unwrap();
    stream.write_all(&request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    answer.split_off(4)
}

fn text(wire: &mut Vec<u8>, text: &str) {
    wire.extend((text.len() as i16).to_be_bytes());
    wire.extend(text.as_bytes());
}

fn bytes(wire: &mut Vec<u8>, bytes: &[u8]) {
    varint(wire, bytes.len() as i64);
    wire.extend(bytes);
}

/// Zigzag, seven bits at a time.
fn varint(wire: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    while left > 0x7f {
        wire.push(left as u8 | 0x80);
        left >>= 7;
    }
    wire.push(left as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}
