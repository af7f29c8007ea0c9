//! Writes the messages of confirm channels between the frames of lapin; part of the stream that lapin writes to.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use futures_util::io::AsyncWrite;

use super::channel::{ConfirmChannels, KEPT, OpenChannels};

/// The writing half of a connection: places messages between the frames of lapin.
#[derive(Debug)]
pub(in crate::connect) struct FrameWriter {
    channels: ConfirmChannels,
    open: OpenChannels,
    /// The messages that were begun: frames of which the first `written` bytes are written.
    frames: Vec<u8>,
    written: usize,
    lapin: LapinFrames,
    /// Set while lapin has bytes that it could not write.
    lapin_waits: bool,
    waker: Option<(Waker, Waker)>,
}

/// Wakes lapin's thread when the socket is writable.
///
/// It wakes the reader, too: lapin knows its own bytes only, and after a wake-up of its writer without such bytes it
/// may wait again without a flush.
struct WakeBoth {
    reader: Waker,
    writer: Waker,
}

impl Wake for WakeBoth {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.writer.wake_by_ref();
        self.reader.wake_by_ref();
    }
}

impl FrameWriter {
    pub(in crate::connect) fn new(channels: ConfirmChannels) -> Self {
        Self {
            channels,
            open: OpenChannels::default(),
            frames: Vec::new(),
            written: 0,
            lapin: LapinFrames::default(),
            lapin_waits: false,
            waker: None,
        }
    }

    /// The waker to write and flush with, in the place of that of lapin's writer.
    pub(in crate::connect) fn waker(&mut self, writer: &Waker) -> Waker {
        if let Some((of, both)) = &self.waker
            && of.will_wake(writer)
        {
            return both.clone();
        }
        // Before the first read there are no messages.
        let Some(reader) = self.channels.reader() else { return writer.clone() };
        let both = Waker::from(Arc::new(WakeBoth { reader, writer: writer.clone() }));
        self.waker = Some((writer.clone(), both.clone()));
        both
    }

    /// Writes the messages that were handed over. Ready when there are no more (the window of the broker value bounds
    /// them), or lapin is next: it has a frame that is written in part, or bytes that wait.
    pub(in crate::connect) fn poll_write_messages<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.lapin.is_complete() {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.poll_write_begun(socket, cx))?;
            if self.lapin_waits || self.channels.is_blocked() || !self.channels.start_writing() {
                return Poll::Ready(Ok(()));
            }
            self.channels.refresh(&mut self.open);
            for channel in &self.open.open {
                channel.take_messages(&mut self.frames);
            }
        }
    }

    /// Writes bytes of lapin, after the messages that were begun.
    pub(in crate::connect) fn poll_write_lapin<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lapin_waits = true;
        // While a frame of lapin is incomplete, no message is begun.
        ready!(self.poll_write_begun(socket, cx))?;
        let written = ready!(Pin::new(socket).poll_write(cx, bytes))?;
        self.lapin.advance(&bytes[..written]);
        self.lapin_waits = false;
        Poll::Ready(Ok(written))
    }

    /// As [`poll_write_lapin`](Self::poll_write_lapin), of several slices.
    pub(in crate::connect) fn poll_write_lapin_vectored<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lapin_waits = true;
        ready!(self.poll_write_begun(socket, cx))?;
        let written = ready!(Pin::new(socket).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let count = slice.len().min(left);
            self.lapin.advance(&slice[..count]);
            left -= count;
        }
        self.lapin_waits = false;
        Poll::Ready(Ok(written))
    }

    /// Writes the rest of the messages that were begun.
    fn poll_write_begun<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let written = self.poll_write_frames(socket, cx);
        self.channels.set_begun(written.is_pending());
        written
    }

    fn poll_write_frames<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.frames.len() {
            let left = &self.frames[self.written..];
            match ready!(Pin::new(&mut *socket).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.written = 0;
        match self.frames.capacity() > KEPT {
            true => self.frames = Vec::new(),
            false => self.frames.clear(),
        }
        Poll::Ready(Ok(()))
    }
}

/// The place in the bytes that lapin writes.
#[derive(Debug)]
struct LapinFrames {
    /// Bytes left of the current frame behind its head.
    left: usize,
    /// The bytes of the current frame's head that were written.
    head: [u8; HEAD],
    known: usize,
}

/// Type, channel and size before a frame's payload.
const HEAD: usize = 7;
/// `AMQP` and the version: what a client sends before its first frame (AMQP 0-9-1, 4.2.2).
const PROTOCOL_HEADER: usize = 8;

impl Default for LapinFrames {
    fn default() -> Self {
        Self { left: PROTOCOL_HEADER, head: [0; HEAD], known: 0 }
    }
}

impl LapinFrames {
    /// True between two frames.
    fn is_complete(&self) -> bool {
        self.left == 0 && self.known == 0
    }

    fn advance(&mut self, mut bytes: &[u8]) {
        while let Some(&next) = bytes.first() {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                self.left -= count;
                bytes = &bytes[count..];
                continue;
            }
            self.head[self.known] = next;
            self.known += 1;
            bytes = &bytes[1..];
            if self.known == HEAD {
                let [_kind, _c1, _c0, s3, s2, s1, s0] = self.head;
                let size = u32::from_be_bytes([s3, s2, s1, s0]);
                // And the end of the frame.
                self.left = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1);
                self.known = 0;
            }
        }
    }
}
