//! [`FaultProxy`]: a TCP proxy that breaks connections on demand, between a client and a real broker.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Forwards TCP connections to one server and breaks them on demand.
///
/// Faults take effect at once, on the connections that are open and on those to come. Dropping the
/// proxy closes its port and resets what it carried.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    faults: Arc<watch::Sender<Faults>>,
    connections: watch::Receiver<Connections>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    /// Connections accepted before the last change of this number are reset.
    cuts: u64,
    refuse: bool,
    blackhole: bool,
    stall: bool,
    /// Bytes per second of one connection in one direction; `None`: as fast as it goes.
    rate: Option<NonZeroU32>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Connections {
    open: usize,
    accepted: usize,
}

impl FaultProxy {
    /// Listens on `listen` (port 0: any free one) and forwards every connection to `upstream`.
    ///
    /// # Errors
    /// When the port cannot be bound. An upstream that is down is no error: its clients are reset.
    pub async fn start(
        listen: impl ToSocketAddrs,
        upstream: impl Into<String>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let faults = Arc::new(watch::Sender::new(Faults::default()));
        let (count, connections) = watch::channel(Connections::default());
        let accepting =
            tokio::spawn(accept(listener, upstream.into(), Arc::clone(&faults), Arc::new(count)));
        Ok(Self { address, faults, connections, accepting })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every open connection (both sides see RST). New ones are taken as before.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.cuts += 1);
    }

    /// While on, new connections are reset as soon as they are accepted. Open ones are not touched.
    pub fn refuse(&self, on: bool) {
        self.faults.send_modify(|faults| faults.refuse = on);
    }

    /// While on, every byte is read and thrown away, in both directions: the peers believe it was
    /// sent. Turning it off resets the connections that lost bytes.
    pub fn blackhole(&self, on: bool) {
        self.faults.send_modify(|faults| faults.blackhole = on);
    }

    /// While on, nothing is read, so the peers' writes fill up the buffers and then block. Turning it
    /// off delivers what waited: the bytes are late, not lost.
    pub fn stall(&self, on: bool) {
        self.faults.send_modify(|faults| faults.stall = on);
    }

    /// Forwards at most this many bytes per second, of each connection and in each direction; `None` ends the limit.
    /// Peers that write faster fill up the buffers and then block.
    pub fn throttle(&self, rate: Option<NonZeroU32>) {
        self.faults.send_modify(|faults| faults.rate = rate);
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.connections.borrow().open
    }

    /// Connections taken so far, without the refused ones.
    pub fn accepted(&self) -> usize {
        self.connections.borrow().accepted
    }

    /// Waits until at least `count` connections are open.
    pub async fn wait_open(&self, count: usize) {
        let mut connections = self.connections.clone();
        // The sender lives as long as the accept task, and that as long as `self`.
        let _gone = connections.wait_for(|now| now.open >= count).await;
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: String,
    faults: Arc<watch::Sender<Faults>>,
    count: Arc<watch::Sender<Connections>>,
) {
    let upstream: Arc<str> = upstream.into();
    // Ends with this task, so that aborting it ends the connections.
    let mut carried = JoinSet::new();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                Err(_out_of_files_or_aborted) => {
                    tokio::task::yield_now().await;
                    continue;
                }
            },
            Some(_ended) = carried.join_next() => continue,
        };
        if faults.borrow().refuse {
            let _already_gone = client.set_zero_linger();
            continue;
        }
        let (upstream, count) = (Arc::clone(&upstream), Arc::clone(&count));
        let faults = faults.subscribe();
        count.send_modify(|now| {
            now.accepted += 1;
            now.open += 1;
        });
        carried.spawn(async move {
            let _open = Open(count);
            let _why = carry(client, &upstream, faults).await;
        });
    }
}

struct Open(Arc<watch::Sender<Connections>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|now| now.open -= 1);
    }
}

/// The two sockets of a connection. Dropped before both directions ended in peace, they are reset.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    finished: bool,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !self.finished {
            let _already_gone = self.client.set_zero_linger();
            let _already_gone = self.server.set_zero_linger();
        }
    }
}

async fn carry(
    client: TcpStream,
    upstream: &str,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    let cuts = faults.borrow_and_update().cuts;
    client.set_nodelay(true)?;
    let server = tokio::select! {
        server = TcpStream::connect(upstream) => server.inspect_err(|_down| {
            let _already_gone = client.set_zero_linger();
        })?,
        _ = faults.wait_for(|now| now.cuts != cuts) => return client.set_zero_linger(),
    };
    server.set_nodelay(true)?;
    let mut pair = Pair { client, server, finished: false };
    let (from_client, to_client) = pair.client.split();
    let (from_server, to_server) = pair.server.split();
    let there = pump(from_client, to_server, faults.clone());
    let back = pump(from_server, to_client, faults.clone());
    tokio::select! {
        end = async { tokio::try_join!(there, back) } => pair.finished = end.is_ok(),
        _ = faults.wait_for(|now| now.cuts != cuts) => {}
    }
    Ok(())
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut lost = false;
    // The time before which a limited rate allows no further read. Reads that are late are made up for.
    const LATE: Duration = Duration::from_millis(100);
    let mut next = Instant::now();
    loop {
        let now = *faults.borrow_and_update();
        if lost && !now.blackhole {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let read = async {
            if now.rate.is_some() {
                tokio::time::sleep_until(next).await;
            }
            from.read(&mut buffer).await
        };
        let length = tokio::select! {
            biased;
            _ = faults.changed() => continue,
            read = read, if !now.stall => read?,
        };
        if let Some(rate) = now.rate {
            next =
                next.max(Instant::now() - LATE) + Duration::from_secs(length as u64) / rate.get();
        }
        if length == 0 {
            return to.shutdown().await;
        }
        match now.blackhole {
            true => lost = true,
            false => to.write_all(&buffer[..length]).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it reads.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut peer, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = peer.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn round_trip(peer: &mut TcpStream) -> io::Result<()> {
        peer.write_all(b"ping").await?;
        peer.read_exact(&mut [0; 4]).await.map(drop)
    }

    async fn connected() -> (FaultProxy, TcpStream) {
        let proxy = FaultProxy::start("127.0.0.1:0", echo().await).await.unwrap();
        let mut peer = TcpStream::connect(proxy.address()).await.unwrap();
        round_trip(&mut peer).await.unwrap();
        (proxy, peer)
    }

    #[tokio::test]
    async fn a_cut_resets_the_old_and_takes_the_new() {
        let (proxy, mut peer) = connected().await;
        assert_eq!((proxy.open(), proxy.accepted()), (1, 1));
        proxy.cut();
        let error = peer.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let mut next = TcpStream::connect(proxy.address()).await.unwrap();
        round_trip(&mut next).await.unwrap();
        assert_eq!(proxy.accepted(), 2);
    }

    #[tokio::test]
    async fn the_last_bytes_before_an_orderly_end_arrive() {
        let (_proxy, mut peer) = connected().await;
        peer.write_all(b"bye").await.unwrap();
        peer.shutdown().await.unwrap();
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"bye");
    }

    #[tokio::test]
    async fn refuses_new_connections_only() {
        let (proxy, mut peer) = connected().await;
        proxy.refuse(true);
        let mut next = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(round_trip(&mut next).await.is_err());
        round_trip(&mut peer).await.unwrap();
        proxy.refuse(false);
        let mut next = TcpStream::connect(proxy.address()).await.unwrap();
        round_trip(&mut next).await.unwrap();
    }

    #[tokio::test]
    async fn black_hole_discards_and_its_end_resets() {
        let (proxy, mut peer) = connected().await;
        proxy.blackhole(true);
        peer.write_all(b"lost").await.unwrap();
        let silence = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(silence, peer.read(&mut [0; 1])).await.is_err());
        proxy.blackhole(false);
        let error = peer.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_stall_delays_and_loses_nothing() {
        let (proxy, mut peer) = connected().await;
        proxy.stall(true);
        peer.write_all(b"late").await.unwrap();
        let silence = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(silence, peer.read(&mut [0; 1])).await.is_err());
        proxy.stall(false);
        let mut back = [0; 4];
        peer.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"late");
    }

    #[tokio::test]
    async fn throttled_bytes_arrive_at_the_rate() {
        let (proxy, mut peer) = connected().await;
        let rate = 256 << 10;
        proxy.throttle(NonZeroU32::new(rate));
        let started = Instant::now();
        let sent = vec![7; rate as usize / 2];
        let mut back = vec![0; sent.len()];
        let (mut from, mut to) = peer.split();
        tokio::try_join!(to.write_all(&sent), from.read_exact(&mut back)).unwrap();
        assert_eq!(back, sent);
        // Reads of 100 ms may be late, and the last one, of up to 64 KiB, is forwarded at once.
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(150), "{took:?}");
        proxy.throttle(None);
        round_trip(&mut peer).await.unwrap();
    }

    #[tokio::test]
    async fn dropping_it_frees_the_port_and_resets() {
        let (proxy, mut peer) = connected().await;
        let address = proxy.address();
        drop(proxy);
        assert!(peer.read(&mut [0; 1]).await.is_err());
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_upstream_that_is_down_resets_the_client() {
        let proxy = FaultProxy::start("127.0.0.1:0", "127.0.0.1:1").await.unwrap();
        let mut peer = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(peer.read(&mut [0; 1]).await.is_err());
        assert_eq!(proxy.accepted(), 1);
    }
}
