//! Tests of the confirm channels through the stream that lapin reads and writes.

mod room;
mod turns;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, ProtocolVersion, gen_frame, parse_frame};
use amq_protocol::protocol::{AMQPClass, BasicProperties, basic, channel, connection};
use futures_util::io::{AsyncRead, AsyncWrite};
use proptest::prelude::*;

use super::channel::ConfirmChannels;
use super::{Answer, ConfirmChannel, Returned};
use crate::connect::frame_filter::{Filtered, FirstByte};

/// A socket with scripted reads and a limit for each write.
#[derive(Default)]
struct Socket {
    incoming: VecDeque<Vec<u8>>,
    written: Vec<u8>,
    /// The most that each write takes, in turn; 0: it is pending. Then without a limit.
    limits: VecDeque<usize>,
    /// The bytes that fit into its buffer, if that is bounded, and the waker of the last write that was pending.
    space: Option<usize>,
    writer: Option<Waker>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(part) = self.incoming.front_mut() else { return Poll::Pending };
        let count = part.len().min(out.len());
        out[..count].copy_from_slice(&part[..count]);
        part.drain(..count);
        if part.is_empty() {
            self.incoming.pop_front();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = self.limits.pop_front().unwrap_or(usize::MAX).min(bytes.len());
        let count = count.min(self.space.unwrap_or(usize::MAX));
        if count == 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.space = self.space.map(|space| space - count);
        self.written.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The stream of a connection, in the place of lapin.
struct Stream {
    stream: Filtered<Socket>,
    channels: ConfirmChannels,
    wakes: Arc<Wakes>,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Stream {
    fn new() -> Self {
        let channels = ConfirmChannels::default();
        let first = FirstByte::default();
        let stream = Filtered::noting(Socket::default(), None, channels.clone(), first);
        Self { stream, channels, wakes: Arc::default() }
    }

    /// After the handshake.
    fn open() -> Self {
        let mut stream = Self::new();
        let header = bytes(&AMQPFrame::ProtocolHeader(ProtocolVersion::amqp_0_9_1()));
        assert_eq!(stream.write(&header), header.len());
        stream.socket().written.clear();
        stream.read();
        stream
    }

    fn socket(&mut self) -> &mut Socket {
        self.stream.socket_mut()
    }

    /// What lapin reads until the socket is pending.
    fn read(&mut self) -> Vec<u8> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        let mut read = Vec::new();
        let mut part = [0; 700];
        while let Poll::Ready(count) =
            Pin::new(&mut self.stream).poll_read(&mut Context::from_waker(&waker), &mut part)
        {
            read.extend_from_slice(&part[..count.unwrap()]);
        }
        read
    }

    fn receive(&mut self, frames: &[AMQPFrame]) -> Vec<AMQPFrame> {
        let incoming = frames.iter().flat_map(bytes).collect();
        self.socket().incoming.push_back(incoming);
        parsed(&self.read())
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.stream).poll_write(&mut cx, bytes) {
            Poll::Ready(written) => written.unwrap(),
            Poll::Pending => 0,
        }
    }

    fn flush(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(&mut cx) {
            flushed.unwrap();
        }
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::SeqCst)
    }
}

fn bytes(frame: &AMQPFrame) -> Vec<u8> {
    let mut room = vec![0; 4_096];
    let end = gen_frame(frame)(io::Cursor::new(&mut room[..]).into()).unwrap().position;
    room.truncate(usize::try_from(end).unwrap());
    room
}

fn parsed(mut bytes: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (rest, frame) = parse_frame(bytes).expect("a frame");
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn publish(id: u16, body: &str) -> [AMQPFrame; 3] {
    let publish = basic::Publish {
        exchange: "e".into(),
        routing_key: "t".into(),
        mandatory: true,
        immediate: false,
    };
    [
        AMQPFrame::Method(id, AMQPClass::Basic(basic::AMQPMethod::Publish(publish))),
        header(id, body, ""),
        AMQPFrame::Body(id, body.into()),
    ]
}

fn header(id: u16, body: &str, message_id: &str) -> AMQPFrame {
    let properties = BasicProperties::default()
        .with_content_type("text/plain".into())
        .with_message_id(message_id.into());
    AMQPFrame::Header(
        id,
        AMQPContentHeader { class_id: 60, body_size: body.len() as u64, properties },
    )
}

fn send(channel: &ConfirmChannel, body: &str) {
    let mut frames = publish(channel.id(), body).iter().flat_map(bytes).collect();
    channel.send(&mut frames, 1);
    assert!(frames.is_empty());
}

fn ack(id: u16, delivery_tag: u64, multiple: bool) -> AMQPFrame {
    let ack = basic::Ack { delivery_tag, multiple };
    AMQPFrame::Method(id, AMQPClass::Basic(basic::AMQPMethod::Ack(ack)))
}

fn nack(id: u16, delivery_tag: u64) -> AMQPFrame {
    let nack = basic::Nack { delivery_tag, multiple: false, requeue: false };
    AMQPFrame::Method(id, AMQPClass::Basic(basic::AMQPMethod::Nack(nack)))
}

fn returned(id: u16, message_id: &str) -> [AMQPFrame; 4] {
    let returned = basic::Return {
        reply_code: 312,
        reply_text: "NO_ROUTE".into(),
        exchange: "e".into(),
        routing_key: "t".into(),
    };
    [
        AMQPFrame::Method(id, AMQPClass::Basic(basic::AMQPMethod::Return(returned))),
        header(id, "a body", message_id),
        AMQPFrame::Body(id, b"a bo".to_vec()),
        AMQPFrame::Body(id, b"dy".to_vec()),
    ]
}

fn close(id: u16, code: u16) -> AMQPFrame {
    let close = channel::Close {
        reply_code: code,
        reply_text: "no exchange".into(),
        class_id: 60,
        method_id: 40,
    };
    AMQPFrame::Method(id, AMQPClass::Channel(channel::AMQPMethod::Close(close)))
}

fn close_ok(id: u16) -> AMQPFrame {
    AMQPFrame::Method(id, AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {})))
}

fn blocked(blocked: bool) -> AMQPFrame {
    let method = match blocked {
        true => connection::AMQPMethod::Blocked(connection::Blocked { reason: "low".into() }),
        false => connection::AMQPMethod::Unblocked(connection::Unblocked {}),
    };
    AMQPFrame::Method(0, AMQPClass::Connection(method))
}

fn answers(channel: &ConfirmChannel) -> Vec<Answer> {
    let mut answers = Vec::new();
    channel.take_answers(&mut answers);
    answers
}

fn confirm(tag: u64, multiple: bool, ack: bool) -> Answer {
    Answer::Confirm { tag, multiple, ack }
}

#[test]
fn answers_reach_the_publisher_and_not_lapin() {
    let mut stream = Stream::open();
    let (first, second) = (stream.channels.open(1), stream.channels.open(2));
    let id = uuid::Uuid::now_v7();
    let mut frames = vec![ack(1, 1, false), ack(3, 9, true), nack(2, 1)];
    frames.extend(returned(1, &id.to_string()));
    frames.extend([AMQPFrame::Heartbeat, ack(1, 5, true)]);
    let read = stream.receive(&frames);
    assert_eq!(read, [ack(3, 9, true), AMQPFrame::Heartbeat]);
    let found = answers(&first);
    let [Answer::Confirm { .. }, Answer::Returned(returned), Answer::Confirm { .. }] = &found[..]
    else {
        panic!("{found:?}")
    };
    let Returned { id: named, topic, reason } = &**returned;
    assert_eq!((named, topic.as_str()), (&Some(id), "t"));
    assert!(reason.contains("the server says 312: NO_ROUTE"), "{reason}");
    assert_eq!((&found[0], &found[2]), (&confirm(1, false, true), &confirm(5, true, true)));
    assert_eq!(answers(&second), [confirm(1, false, false)]);
}

#[test]
fn returns_of_two_channels_may_be_interleaved() {
    let mut stream = Stream::open();
    let channels = [stream.channels.open(1), stream.channels.open(2)];
    let ids = [(); 2].map(|()| uuid::Uuid::now_v7());
    let [first, second] =
        [0, 1].map(|index| returned(channels[index].id(), &ids[index].to_string()));
    let frames: Vec<_> = first.into_iter().zip(second).flat_map(<[_; 2]>::from).collect();
    assert_eq!(stream.receive(&frames), []);
    for (channel, id) in channels.iter().zip(ids) {
        let found = answers(channel);
        assert!(matches!(&found[..], [Answer::Returned(one)] if one.id == Some(id)), "{found:?}");
    }
}

#[test]
fn close_of_the_server_discards_what_was_not_begun() {
    let mut stream = Stream::open();
    let (closed, other) = (stream.channels.open(1), stream.channels.open(2));
    send(&closed, "begun");
    stream.socket().limits = [5, 0].into();
    stream.flush();
    send(&closed, "discarded");
    send(&other, "kept");
    assert_eq!(stream.receive(&[ack(1, 1, false), close(1, 404)]), [close(1, 404)]);
    let text = "no exchange".to_owned();
    assert_eq!(answers(&closed), [confirm(1, false, true), Answer::Closed { code: 404, text }]);
    send(&closed, "too late");
    let close_ok = bytes(&close_ok(1));
    assert_eq!(stream.write(&close_ok), close_ok.len());
    stream.flush();
    let mut expected: Vec<_> = publish(1, "begun").into();
    expected.extend(parsed(&close_ok));
    expected.extend(publish(2, "kept"));
    assert_eq!(parsed(&stream.socket().written), expected);
}

#[test]
fn dropped_channel_keeps_late_answers_until_it_is_closed() {
    let mut stream = Stream::open();
    let channel = stream.channels.open(1);
    send(&channel, "discarded");
    drop(channel);
    stream.flush();
    assert!(stream.socket().written.is_empty());
    assert_eq!(stream.receive(&[ack(1, 1, false), close_ok(1)]), [close_ok(1)]);
    // Its number is lapin's again, until a channel is opened on it.
    assert_eq!(stream.receive(&[ack(1, 2, false)]), [ack(1, 2, false)]);
    let channel = stream.channels.open(1);
    assert_eq!(stream.receive(&[ack(1, 1, false)]), []);
    assert_eq!(answers(&channel), [confirm(1, false, true)]);
}

#[test]
fn nothing_is_begun_while_the_connection_is_blocked() {
    let mut stream = Stream::open();
    let channel = stream.channels.open(1);
    assert_eq!(stream.receive(&[blocked(true)]), [blocked(true)]);
    send(&channel, "waits");
    stream.flush();
    assert!(stream.socket().written.is_empty());
    assert_eq!(channel.room(1), 0);
    let before = stream.wakes();
    assert_eq!(stream.receive(&[blocked(false)]), [blocked(false)]);
    assert_eq!(stream.wakes(), before + 1, "lapin's thread must flush");
    stream.flush();
    assert_eq!(parsed(&stream.socket().written), publish(1, "waits"));
}

#[test]
fn lapin_gets_heartbeats_in_the_place_of_answers() {
    let mut stream = Stream::open();
    let channel = stream.channels.open(1);
    assert_eq!(stream.receive(&[ack(1, 1, false)]), []);
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let read = stream.receive(&[ack(1, 2, false), ack(1, 3, false), ack(9, 1, false)]);
    assert_eq!(read, [AMQPFrame::Heartbeat, ack(9, 1, false)]);
    assert_eq!(answers(&channel).len(), 3);
}

#[derive(Debug, Clone)]
enum Step {
    Send {
        channel: usize,
        body: usize,
    },
    /// lapin writes some of its bytes.
    Lapin(usize),
    Flush,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the pieces: frames stay whole, the frames of a message adjoin, and each channel keeps its order.
    #[test]
    fn frames_of_both_sides_stay_whole(
        steps in proptest::collection::vec(prop_oneof![
            3 => (0..2_usize, 0..600_usize).prop_map(|(channel, body)| Step::Send { channel, body }),
            3 => (1..40_usize).prop_map(Step::Lapin),
            4 => Just(Step::Flush),
        ], 1..120),
        limits in proptest::collection::vec(prop_oneof![Just(0_usize), 1..30_usize, 1..2_000_usize], 0..200),
    ) {
        let mut stream = Stream::open();
        let channels = [stream.channels.open(1), stream.channels.open(2)];
        stream.socket().limits = limits.into();
        let lapin: Vec<_> =
            (0..200_u64).map(|tag| if tag % 3 == 0 { AMQPFrame::Heartbeat } else { ack(7, tag, true) }).collect();
        let lapin_bytes: Vec<u8> = lapin.iter().flat_map(bytes).collect();
        let (mut at, mut sent) = (0, [Vec::new(), Vec::new()]);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Send { channel, body } => {
                    let body = format!("{number:04}{}", "x".repeat(body));
                    send(&channels[channel], &body);
                    sent[channel].push(body);
                }
                Step::Lapin(count) => {
                    let end = (at + count).min(lapin_bytes.len());
                    at += stream.write(&lapin_bytes[at..end]);
                }
                Step::Flush => stream.flush(),
            }
        }
        stream.socket().limits.clear();
        while at < lapin_bytes.len() {
            at += stream.write(&lapin_bytes[at..]);
        }
        stream.flush();
        let written = parsed(&stream.socket().written);
        let is_lapin = |frame: &AMQPFrame| matches!(frame, AMQPFrame::Heartbeat | AMQPFrame::Method(7, _));
        let of_lapin: Vec<_> = written.iter().filter(|frame| is_lapin(frame)).cloned().collect();
        prop_assert_eq!(of_lapin, lapin);
        let mut bodies = [Vec::new(), Vec::new()];
        let mut frames = written.iter();
        while let Some(frame) = frames.next() {
            if is_lapin(frame) {
                continue;
            }
            let (Some(AMQPFrame::Header(..)), Some(AMQPFrame::Body(id, body))) =
                (frames.next(), frames.next())
            else {
                panic!("a message was split: {written:?}")
            };
            bodies[usize::from(*id) - 1].push(String::from_utf8(body.clone()).unwrap());
        }
        prop_assert_eq!(bodies, sent);
    }

    /// Whatever the pieces: lapin gets all other frames, and the publisher all of its answers.
    #[test]
    fn answers_are_found_in_any_pieces(
        kinds in proptest::collection::vec(0..5_u8, 1..60),
        piece in 1_usize..200,
    ) {
        let mut stream = Stream::open();
        let channel = stream.channels.open(1);
        let (mut incoming, mut passed, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for (number, kind) in kinds.into_iter().enumerate() {
            let tag = number as u64 + 1;
            let frames = match kind {
                0 => vec![ack(1, tag, number % 2 == 0)],
                1 => returned(1, "id").to_vec(),
                2 => vec![AMQPFrame::Heartbeat],
                3 => publish(4, "a body of another channel").to_vec(),
                _ => vec![nack(1, tag)],
            };
            match kind {
                0 => expected.push(Some(confirm(tag, number % 2 == 0, true))),
                // A return.
                1 => expected.push(None),
                2 | 3 => passed.extend(frames.clone()),
                _ => expected.push(Some(confirm(tag, false, false))),
            }
            incoming.extend(frames.iter().flat_map(bytes));
        }
        stream.socket().incoming = incoming.chunks(piece).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(parsed(&stream.read()), passed);
        let found = answers(&channel).into_iter();
        let found: Vec<_> =
            found.map(|answer| Some(answer).filter(|answer| !matches!(answer, Answer::Returned(_)))).collect();
        prop_assert_eq!(found, expected);
    }
}
