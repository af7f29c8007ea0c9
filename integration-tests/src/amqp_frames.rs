//! A publisher that writes AMQP 0-9-1 frames itself: properties and names may be any bytes.

#![allow(clippy::unwrap_used)] // Helpers of tests fail the test.

use lapin::uri::AMQPUri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::servers;

/// Property flag and list entry of a content type, a header table, a correlation id, a type: AMQP 0-9-1,
/// 4.2.6.1.
pub const HEADERS: u16 = 0x2000;
/// See [`HEADERS`].
pub const CORRELATION_ID: u16 = 0x0400;
/// See [`HEADERS`].
pub const TYPE: u16 = 0x0020;

/// A connection with one channel in confirm mode.
#[derive(Debug)]
pub struct RawPublisher(TcpStream);

impl RawPublisher {
    /// Connects past any proxy.
    pub async fn connect() -> Self {
        let dsn = servers::variable("CQRS_TEST_AMQP", "amqp://guest:guest@localhost:5672/%2f");
        let uri: AMQPUri = dsn.parse().unwrap();
        let address = (uri.authority.host.as_str(), uri.authority.port);
        let mut publisher = Self(TcpStream::connect(address).await.unwrap());
        publisher.0.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
        publisher.until(10, 10).await;
        let userinfo = &uri.authority.userinfo;
        let plain = format!("\0{}\0{}", userinfo.username, userinfo.password);
        let mut start_ok = long(b"");
        start_ok.extend([short(b"PLAIN"), long(plain.as_bytes()), short(b"en_US")].concat());
        publisher.method(0, 10, 11, &start_ok).await;
        let tune = publisher.until(10, 30).await;
        // Channels and frames as the server likes, no heartbeats.
        publisher.method(0, 10, 31, &[&tune[..6], &[0, 0]].concat()).await;
        let open = [short(uri.vhost.as_bytes()), short(b""), vec![0]].concat();
        publisher.method(0, 10, 40, &open).await;
        publisher.until(10, 41).await;
        publisher.method(1, 20, 10, &short(b"")).await;
        publisher.until(20, 11).await;
        publisher.method(1, 85, 10, &[0]).await;
        publisher.until(85, 11).await;
        publisher
    }

    /// Publishes a message with these property flags and this property list; confirmed.
    pub async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        (flags, properties): (u16, &[u8]),
        body: &[u8],
    ) {
        let to = [&[0, 0][..], &short(exchange.as_bytes()), &short(routing_key), &[0]].concat();
        self.method(1, 60, 40, &to).await;
        let mut header = vec![0, 60, 0, 0];
        header.extend((body.len() as u64).to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend_from_slice(properties);
        self.frame(2, 1, &header).await;
        self.frame(3, 1, body).await;
        self.until(60, 80).await;
    }

    /// Receives a message of `queue` and closes the socket without a close frame, as a killed client.
    pub async fn take_and_die(mut self, queue: &str) {
        let arguments = [&[0, 0][..], &short(queue.as_bytes()), &[0]].concat();
        self.method(1, 60, 70, &arguments).await;
        self.until(60, 71).await;
    }

    async fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let payload = [&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat();
        self.frame(1, channel, &payload).await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&[kind][..], &channel.to_be_bytes(), &size].concat();
        self.0.write_all(&[&head, payload, &[0xCE]].concat()).await.unwrap();
    }

    /// The arguments of the next method frame, which must be this one.
    async fn until(&mut self, class: u16, method: u16) -> Vec<u8> {
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).await.unwrap();
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; size as usize + 1];
            self.0.read_exact(&mut payload).await.unwrap();
            if head[0] == 1 {
                let expected = [class.to_be_bytes(), method.to_be_bytes()].concat();
                let text = String::from_utf8_lossy(&payload);
                assert_eq!(payload[..4], expected, "the server says {text:?}");
                return payload[4..payload.len() - 1].to_vec();
            }
        }
    }
}

/// A short string; longer than 255 bytes it fails the test.
pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

/// A long string, a table's or an array's bytes.
pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// A header table with one entry: this name and a long string.
pub fn text_header(name: &[u8], value: &[u8]) -> Vec<u8> {
    long(&[&short(name)[..], b"S", &long(value)].concat())
}

/// A header table with an array in an array, so many deep.
pub fn nested_header(depth: usize) -> Vec<u8> {
    let value = (0..depth).fold(vec![b'V'], |inner, _| [&b"A"[..], &long(&inner)].concat());
    long(&[&short(b"deep")[..], &value].concat())
}
