//! Tests of the wake-ups between a publisher and lapin's thread, and of the room for messages.

use super::*;

#[test]
fn messages_wake_the_reader_once_and_room_wakes_the_publisher() {
    let mut stream = Stream::open();
    let channel = stream.channels.open(1);
    let publisher = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&publisher));
    let mut found = Vec::new();
    let mut poll = || channel.poll_answers(&mut Context::from_waker(&waker), &mut found).is_ready();
    assert!(!poll());
    let before = stream.wakes();
    for _ in 0..3 {
        send(&channel, "x");
    }
    assert_eq!((stream.wakes() - before, channel.room(4)), (1, 1));
    stream.flush();
    assert_eq!(publisher.0.load(Ordering::SeqCst), 0, "it did not wait for room");
    send(&channel, "x");
    assert_eq!((stream.wakes() - before, channel.room(1)), (2, 0));
    stream.flush();
    assert_eq!((publisher.0.load(Ordering::SeqCst), channel.room(1)), (1, 1));
    assert!(!poll());
    stream.receive(&[ack(1, 1, false), ack(1, 2, false)]);
    assert_eq!(publisher.0.load(Ordering::SeqCst), 2);
    assert!(poll());
    assert_eq!(found.len(), 2);
}

#[test]
fn message_is_unwritten_until_the_socket_took_it() {
    let mut stream = Stream::open();
    let channel = stream.channels.open(1);
    assert!(!stream.channels.has_unwritten());
    send(&channel, "x");
    assert!(stream.channels.has_unwritten(), "lapin has not flushed");
    stream.socket().limits = [5, 0, 0].into();
    stream.flush();
    assert!(stream.channels.has_unwritten(), "the socket is full");
    assert_eq!(stream.write(&bytes(&AMQPFrame::Heartbeat)), 0);
    assert!(stream.channels.has_unwritten(), "the socket is full");
    stream.flush();
    assert!(!stream.channels.has_unwritten());
}

#[test]
fn large_messages_wait_for_those_handed_over() {
    let mut stream = Stream::open();
    let channel = stream.channels.open(1);
    channel.send(&mut vec![0; ConfirmChannel::MAX_UNWRITTEN - 1], 1);
    assert_eq!(channel.room(128), 127);
    channel.send(&mut vec![0], 1);
    let publisher = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&publisher));
    let polled = channel.poll_answers(&mut Context::from_waker(&waker), &mut Vec::new());
    assert_eq!((polled, channel.room(128)), (Poll::Pending, 0));
    stream.flush();
    assert_eq!((publisher.0.load(Ordering::SeqCst), channel.room(128)), (1, 128));
}
