//! The stream that lapin reads: a socket behind the frame filter, and the reactor of that type.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::Tokio;
use async_rs::traits::Reactor;
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::AsyncTcpStream;

use super::filter::FrameFilter;
use crate::connect::confirm_channel::{ConfirmChannels, FrameWriter};

/// A socket of tokio, with TLS if any.
type Socket = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// The first byte of the server, or `None` if it sent none before the connection ended. Not set before.
pub(in crate::connect) type FirstByte = Arc<OnceLock<Option<u8>>>;

/// A socket whose incoming frames go through a [`FrameFilter`], and which a [`FrameWriter`] writes messages to.
pub(in crate::connect) struct Filtered<S = Socket> {
    socket: S,
    filter: FrameFilter,
    writer: FrameWriter,
    channels: ConfirmChannels,
    first: FirstByte,
}

impl<S> Filtered<S> {
    /// `frame_max` is the limit the client asks for, in bytes.
    pub(in crate::connect) fn new(socket: S, frame_max: Option<u32>) -> Self {
        Self::noting(socket, frame_max, ConfirmChannels::default(), FirstByte::default())
    }

    /// Likewise, with confirm channels; notes the server's first byte.
    pub(in crate::connect) fn noting(
        socket: S,
        frame_max: Option<u32>,
        channels: ConfirmChannels,
        first: FirstByte,
    ) -> Self {
        let filter = FrameFilter::new(frame_max, channels.clone());
        Self { socket, filter, writer: FrameWriter::new(channels.clone()), channels, first }
    }

    #[cfg(test)]
    pub(in crate::connect) fn socket_mut(&mut self) -> &mut S {
        &mut self.socket
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Filtered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        /// Fewer bytes are read together with the frames behind them.
        const WORTH_BYPASSING: usize = 4 << 10;
        let Self { socket, filter, channels, first, .. } = self.get_mut();
        channels.set_reader(cx.waker());
        loop {
            let taken = filter.take(out);
            if taken > 0 || out.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            if filter.is_over() {
                // lapin reads on before it handles the last frame, and logs the end of the socket as an error.
                return Poll::Pending;
            }
            let direct = filter.may_bypass().min(out.len());
            if direct >= WORTH_BYPASSING {
                let read = ready!(Pin::new(socket).poll_read(cx, &mut out[..direct]))?;
                filter.bypassed(read);
                return Poll::Ready(Ok(read));
            }
            let space = filter.space();
            let read = ready!(Pin::new(&mut *socket).poll_read(cx, space));
            // A server that closes with bytes unread resets the connection.
            let is_end =
                matches!(&read, Err(error) if error.kind() == io::ErrorKind::ConnectionReset);
            if is_end || read.is_ok() {
                first.get_or_init(|| space.first().copied().filter(|_| matches!(read, Ok(1..))));
            }
            match read? {
                0 => {
                    filter.finish();
                    return Poll::Ready(Ok(filter.take(out)));
                }
                read => filter.received(read),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Filtered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, writer, .. } = self.get_mut();
        let waker = writer.waker(cx.waker());
        writer.poll_write_lapin(socket, &mut Context::from_waker(&waker), bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, writer, .. } = self.get_mut();
        let waker = writer.waker(cx.waker());
        writer.poll_write_lapin_vectored(socket, &mut Context::from_waker(&waker), slices)
    }

    /// Writes messages, too. Never pending: lapin would write nothing of its own while this is, and it flushes in
    /// each turn.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, writer, .. } = self.get_mut();
        let waker = writer.waker(cx.waker());
        let cx = &mut Context::from_waker(&waker);
        if let Poll::Ready(written) = writer.poll_write_messages(socket, cx) {
            written?;
        }
        match Pin::new(socket).poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx)
    }
}

/// Tokio's reactor with [`Filtered`] sockets: lapin takes no other streams than its reactor's.
#[derive(Debug, Clone)]
pub(in crate::connect) struct Sockets(pub(in crate::connect) Tokio);

impl Reactor for Sockets {
    type TcpStream = Filtered;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// Unsupported: lapin registers nothing.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _handle: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Filtered, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async { Ok(Filtered::new(AsyncTcpStream::Plain(connecting.await?), None)) }
    }
}
