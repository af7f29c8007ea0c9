//! Copies fetched records out of librdkafka. Owned by the [`session`](super::session), for all its partitions.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::BytesMut;
use cqrs_core::consume::LogLimit;
use cqrs_core::consume::support::put_packed;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use super::record::{Record, Unread, header_len};
use super::retry_headers::{MAX_RETRY_HEADERS, is_retry_header};

/// The largest number of headers of a record that are read.
const MAX_HEADERS: usize = 1_024;
/// The largest number of header names that are not UTF-8: each costs a panic of rdkafka, which is caught.
const MAX_UNREADABLE: usize = 8;

/// Small records share buffers, so that most records allocate nothing. A buffer is filled again once no record has a
/// part of it: a new one costs more than the copy, because another thread frees it.
#[derive(Debug, Default)]
pub(super) struct Copier {
    /// The buffer that is filled. `None` before the first small record.
    buffer: Option<BytesMut>,
    /// Full ones, about in the order in which they were filled.
    full: VecDeque<BytesMut>,
    /// The headers of the current record, since reading them twice costs more than a copy.
    headers: Vec<u8>,
    /// Log lines about headers that cannot be read.
    log_limit: LogLimit,
}

/// The size of a shared buffer. A record that is kept for long keeps its buffer too, whatever its own size. By default
/// all records that may be unsettled keep no more bytes in this way than may be unsettled.
const BUFFER: usize = 6 * 1024;
/// Larger records have their own buffer: two allocations beyond the allocator's fast path, freed by another thread.
const SHARED: usize = BUFFER / 3;
/// The most full buffers that are kept, 6 MiB.
const MOST_FULL: usize = 1_024;
/// Full buffers that are looked at for one that can be filled again.
const LOOKS: usize = 2;

impl Copier {
    pub(super) fn copy(&mut self, message: &BorrowedMessage<'_>) -> Record {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        let unread = read_headers(message, &mut headers, &self.log_limit).map(Arc::new);
        let (key, body) = (message.key(), message.payload());
        let size = key.map_or(0, <[u8]>::len) + body.map_or(0, <[u8]>::len) + headers.len();
        let mut own = BytesMut::new();
        let buffer = self.buffer_for(size, &mut own);
        buffer.extend_from_slice(key.unwrap_or_default());
        buffer.extend_from_slice(body.unwrap_or_default());
        buffer.extend_from_slice(&headers);
        let content = buffer.split().freeze();
        let has_headers = !headers.is_empty();
        if headers.capacity() <= BUFFER {
            self.headers = headers;
        }
        Record {
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            content,
            key_length: key.map(length),
            body_length: body.map(length),
            has_headers,
            unread,
            drops: 0,
        }
    }

    /// A buffer with room for `size` bytes: the shared one, or `own`, which is exactly as large.
    fn buffer_for<'b>(&'b mut self, size: usize, own: &'b mut BytesMut) -> &'b mut BytesMut {
        if size > SHARED {
            *own = BytesMut::with_capacity(size);
            return own;
        }
        if let Some(full) = self.buffer.take_if(|buffer| buffer.capacity() < size) {
            self.full.push_back(full);
        }
        let Self { buffer, full, .. } = self;
        buffer.get_or_insert_with(|| refill(full))
    }
}

/// An empty buffer: of the oldest `full` ones one that no record has a part of, or a new one.
fn refill(full: &mut VecDeque<BytesMut>) -> BytesMut {
    for _ in 0..LOOKS {
        let Some(mut oldest) = full.pop_front() else { break };
        if oldest.try_reclaim(BUFFER) {
            return oldest;
        }
        // A record that is kept for long must not block the others.
        if full.len() < MOST_FULL {
            full.push_back(oldest);
        }
    }
    BytesMut::with_capacity(BUFFER)
}

/// A record is smaller than 2 GiB.
fn length(part: &[u8]) -> u32 {
    u32::try_from(part.len()).unwrap_or(u32::MAX)
}

/// Copies the readable headers of a record into `buffer`. Headers that a retry copy adds are always read, and do not
/// count against the limit.
fn read_headers(
    message: &BorrowedMessage<'_>,
    buffer: &mut Vec<u8>,
    log_limit: &LogLimit,
) -> Option<Unread> {
    let headers = message.headers()?;
    let count = headers.count();
    let (mut added, mut others, mut bytes) = (Vec::new(), 0, 0);
    let (mut next, mut unreadable) = (0, 0);
    while next < count && unreadable <= MAX_UNREADABLE {
        // rdkafka panics on a name that is not UTF-8, and has no other way to read a header.
        let read = catch_unwind(AssertUnwindSafe(|| {
            while next < count {
                next += 1;
                let header = headers.get(next - 1);
                bytes += header_len(header.key, header.value);
                if is_retry_header(header.key) {
                    put_packed(&mut added, header.key, header.value);
                    continue;
                }
                others += 1;
                if others <= MAX_HEADERS {
                    put_packed(buffer, header.key, header.value);
                }
            }
        }));
        unreadable += usize::from(read.is_err());
    }
    // A retry copy has its added headers at the end.
    let end = next.max(count.saturating_sub(MAX_RETRY_HEADERS));
    for index in end..count {
        let _unreadable = catch_unwind(AssertUnwindSafe(|| {
            let header = headers.get(index);
            if is_retry_header(header.key) {
                put_packed(&mut added, header.key, header.value);
            }
        }));
    }
    let reason = if unreadable > MAX_UNREADABLE {
        Some("it has too many headers whose names are not UTF-8".into())
    } else if others > MAX_HEADERS {
        Some(format!("it has {others} headers, at most {MAX_HEADERS} are read").into())
    } else {
        None
    };
    if reason.is_some() {
        buffer.clear();
    }
    buffer.extend_from_slice(&added);
    if reason.is_none() && unreadable == 0 {
        return None;
    }
    if let Some(left_out) = log_limit.line() {
        tracing::warn!(
            topic = message.topic(),
            partition = message.partition(),
            offset = message.offset(),
            headers = count,
            unreadable,
            reason = reason.as_deref(),
            left_out,
            "not all headers of the record can be read; copies of it have them all"
        );
    }
    let unknown = unreadable + count - next;
    Some(Unread::new(headers.detach(), bytes, count, unknown, reason))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::KafkaSubscription;
    use crate::config::DEFAULT_UNSETTLED;

    #[test]
    fn records_that_each_keep_a_buffer_stay_within_the_bound() {
        let bound = KafkaSubscription::default().max_unsettled_bytes;
        assert!(DEFAULT_UNSETTLED * BUFFER <= bound, "of {bound}");
    }

    /// Takes `size` bytes of a buffer, as a record does, and fills them with `byte`. The capacity is that before it.
    fn copy(copier: &mut Copier, size: usize, byte: u8) -> (Bytes, usize) {
        let mut own = BytesMut::new();
        let buffer = copier.buffer_for(size, &mut own);
        buffer.resize(size, byte);
        assert!(buffer.capacity() >= size);
        let capacity = buffer.capacity();
        (buffer.split().freeze(), capacity)
    }

    #[test]
    fn small_records_share_a_buffer() {
        let mut copier = Copier::default();
        let (first, capacity) = copy(&mut copier, SHARED, 0);
        assert_eq!(capacity, BUFFER);
        let (large, capacity) = copy(&mut copier, SHARED + 1, 0);
        assert_eq!((large.len(), capacity), (SHARED + 1, SHARED + 1), "not a byte too many");
        let mut before = first.as_ptr_range().end;
        for left in (1..BUFFER / SHARED).rev() {
            let (next, capacity) = copy(&mut copier, SHARED, 0);
            assert_eq!((next.as_ptr(), capacity), (before, left * SHARED), "right behind it");
            before = next.as_ptr_range().end;
        }
        assert_eq!(copy(&mut copier, 1, 0).1, BUFFER, "a new one when it is full");
        assert_eq!(copy(&mut copier, 0, 0).0.len(), 0);
    }

    /// The records that fill one buffer, with `byte`.
    fn fill(copier: &mut Copier, byte: u8) -> Vec<Bytes> {
        (0..BUFFER / SHARED).map(|_| copy(copier, SHARED, byte).0).collect()
    }

    fn has_only(records: &[Bytes], byte: u8) -> bool {
        records.iter().flatten().all(|found| *found == byte)
    }

    #[test]
    fn buffer_is_filled_again_once_no_record_has_a_part_of_it() {
        let mut copier = Copier::default();
        let (mut first, second) = (fill(&mut copier, 1), fill(&mut copier, 2));
        let at = first[0].as_ptr();
        let kept = first.split_off(BUFFER / SHARED - 1);
        drop(first);
        let third = fill(&mut copier, 3);
        assert!(third.iter().all(|record| record.as_ptr() != at), "a part of it is kept");
        assert!(has_only(&kept, 1));
        drop((kept, third));
        let again = [fill(&mut copier, 4), fill(&mut copier, 4)].concat();
        assert!(again.iter().any(|record| record.as_ptr() == at));
        assert!(has_only(&again, 4) && has_only(&second, 2));
        assert_eq!(copier.full.len(), 2, "and none was made");
    }

    #[test]
    fn record_that_is_kept_does_not_block_other_buffers() {
        let mut copier = Copier::default();
        let kept = fill(&mut copier, 1);
        for _ in 0..10 * MOST_FULL {
            drop(fill(&mut copier, 2));
            assert!(copier.full.len() < 3);
        }
        assert!(has_only(&kept, 1));
    }

    #[test]
    fn full_buffers_are_bounded() {
        let mut copier = Copier::default();
        let bytes = (0..=u8::MAX).cycle().take(2 * MOST_FULL);
        let filled: Vec<_> = bytes.map(|byte| (fill(&mut copier, byte), byte)).collect();
        assert_eq!(copier.full.len(), MOST_FULL);
        assert!(filled.iter().all(|(records, byte)| has_only(records, *byte)));
    }
}
