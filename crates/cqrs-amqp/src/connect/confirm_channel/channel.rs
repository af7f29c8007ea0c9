//! The channels of one connection that publish past lapin; shared by their publishers and lapin's thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use uuid::Uuid;

/// The confirm channels of one connection. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConfirmChannels(Arc<SharedChannels>);

#[derive(Debug, Default)]
struct SharedChannels {
    open: Mutex<Vec<Arc<ChannelQueues>>>,
    /// Changes with `open`.
    version: AtomicU64,
    /// Set if a channel may have messages to write; cleared by lapin's thread before it takes them.
    unwritten: AtomicBool,
    /// Set while the socket does not take all bytes of the messages that lapin's thread took.
    begun: AtomicBool,
    /// Set while the server blocks the connection.
    blocked: AtomicBool,
    /// Wakes lapin's thread as if the socket were readable: then it flushes its stream. As if the socket were writable, it
    /// would flush only with bytes of its own.
    reader: Mutex<Option<Waker>>,
}

/// The messages and answers of one channel, between its publisher and lapin's thread.
#[derive(Debug)]
pub(super) struct ChannelQueues {
    pub(super) id: u16,
    messages: Mutex<Messages>,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Messages {
    /// Frames of whole messages.
    frames: Vec<u8>,
    count: usize,
    /// Set while the publisher waits until they are taken.
    awaited: bool,
    /// Set once nothing may be written any more.
    discarded: bool,
}

#[derive(Debug, Default)]
struct Answers {
    queue: Vec<Answer>,
    publisher: Option<Waker>,
}

/// A frame of the server about the messages of a channel, in the order in which they came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `basic.ack` or `basic.nack` of one delivery tag, or of all up to it.
    Confirm { tag: u64, multiple: bool, ack: bool },
    /// `basic.return`: it comes before the confirm of its message.
    Returned(Box<Returned>),
    /// `channel.close`: the last answer.
    Closed { code: u16, text: String },
}

/// A returned message as the server names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Returned {
    pub(crate) id: Option<Uuid>,
    pub(crate) topic: String,
    /// The reason in the server's words.
    pub(crate) reason: String,
}

/// The memory that is kept for the next messages, in bytes.
pub(super) const KEPT: usize = 1 << 20;

impl ConfirmChannels {
    /// Publishes past lapin on its channel `id`, which is in confirm mode and has published nothing.
    pub(in crate::connect) fn open(&self, id: u16) -> ConfirmChannel {
        let queues =
            Arc::new(ChannelQueues { id, messages: Mutex::default(), answers: Mutex::default() });
        let mut open = lock(&self.0.open);
        open.retain(|other| other.id != id);
        open.push(Arc::clone(&queues));
        self.0.version.fetch_add(1, Ordering::Release);
        ConfirmChannel { queues, connection: self.clone() }
    }

    /// Forgets a channel: the server closed it, or answered lapin's `channel.close`.
    pub(super) fn closed(&self, id: u16) {
        lock(&self.0.open).retain(|other| other.id != id);
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// Updates a copy of the open channels, which lapin's thread uses without a lock.
    pub(super) fn refresh(&self, copy: &mut OpenChannels) {
        let version = self.0.version.load(Ordering::Acquire);
        if copy.version != version {
            let open = lock(&self.0.open).clone();
            *copy = OpenChannels { version, open };
        }
    }

    pub(super) fn set_blocked(&self, blocked: bool) {
        self.0.blocked.store(blocked, Ordering::Release);
        if !blocked {
            self.wake_reader();
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.0.blocked.load(Ordering::Acquire)
    }

    /// True if there may be messages to write: then the caller takes them.
    pub(super) fn start_writing(&self) -> bool {
        self.0.unwritten.load(Ordering::Acquire) && self.0.unwritten.swap(false, Ordering::AcqRel)
    }

    pub(super) fn set_begun(&self, begun: bool) {
        self.0.begun.store(begun, Ordering::Release);
    }

    /// True if messages that were handed over may not be written yet: the socket is full, or lapin's thread is on its way.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.0.begun.load(Ordering::Acquire) || self.0.unwritten.load(Ordering::Acquire)
    }

    /// Sets the waker of lapin's reader.
    pub(in crate::connect) fn set_reader(&self, waker: &Waker) {
        let mut reader = lock(&self.0.reader);
        if !reader.as_ref().is_some_and(|reader| reader.will_wake(waker)) {
            *reader = Some(waker.clone());
        }
    }

    pub(super) fn reader(&self) -> Option<Waker> {
        lock(&self.0.reader).clone()
    }

    fn wake_reader(&self) {
        if let Some(reader) = &*lock(&self.0.reader) {
            reader.wake_by_ref();
        }
    }
}

/// The open channels, as lapin's thread saw them last.
#[derive(Debug, Default)]
pub(super) struct OpenChannels {
    version: u64,
    pub(super) open: Vec<Arc<ChannelQueues>>,
}

impl OpenChannels {
    pub(super) fn get(&self, id: u16) -> Option<&Arc<ChannelQueues>> {
        self.open.iter().find(|channel| channel.id == id)
    }
}

impl ChannelQueues {
    /// Moves the messages behind `frames`. The publisher may hand over further ones.
    pub(super) fn take_messages(&self, frames: &mut Vec<u8>) {
        let awaited = {
            let mut messages = lock(&self.messages);
            messages.count = 0;
            transfer(&mut messages.frames, frames);
            std::mem::take(&mut messages.awaited)
        };
        if awaited {
            self.wake_publisher();
        }
    }

    /// Drops the messages that were not taken and all further ones.
    pub(super) fn discard(&self) {
        *lock(&self.messages) = Messages { discarded: true, ..Messages::default() };
    }

    /// Adds an answer; [`wake_publisher`](Self::wake_publisher) follows.
    pub(super) fn push(&self, answer: Answer) {
        lock(&self.answers).queue.push(answer);
    }

    pub(super) fn wake_publisher(&self) {
        let publisher = lock(&self.answers).publisher.take();
        if let Some(publisher) = publisher {
            publisher.wake();
        }
    }
}

/// A channel in confirm mode that its owner publishes on. Its delivery tags count from 1 in the order of the messages.
///
/// Dropping it discards the messages that are not on their way to the socket.
#[derive(Debug)]
pub(crate) struct ConfirmChannel {
    queues: Arc<ChannelQueues>,
    connection: ConfirmChannels,
}

impl ConfirmChannel {
    /// Bytes of frames from which on further messages wait. lapin's own frames, and the messages of other channels, go
    /// behind what was handed over: opening a channel must not take longer than its time limit on a slow network.
    pub(crate) const MAX_UNWRITTEN: usize = 256 << 10;

    pub(crate) fn id(&self) -> u16 {
        self.queues.id
    }

    /// The confirm channels of its connection.
    pub(crate) fn connection(&self) -> &ConfirmChannels {
        &self.connection
    }

    /// Hands over the frames of `count` whole messages, and leaves `frames` empty.
    pub(crate) fn send(&self, frames: &mut Vec<u8>, count: usize) {
        {
            let mut messages = lock(&self.queues.messages);
            if messages.discarded {
                frames.clear();
                return;
            }
            messages.count += count;
            transfer(frames, &mut messages.frames);
        }
        // Until it is cleared, lapin's thread is on its way.
        if !self.connection.0.unwritten.swap(true, Ordering::AcqRel) {
            self.connection.wake_reader();
        }
    }

    /// The number of messages that may be handed over until `limit` are not on their way to the socket, or their frames
    /// have [`MAX_UNWRITTEN`](Self::MAX_UNWRITTEN) bytes. At 0 the task of [`poll_answers`](Self::poll_answers) is woken
    /// when there is room again.
    pub(crate) fn room(&self, limit: usize) -> usize {
        let mut messages = lock(&self.queues.messages);
        let room = match messages.frames.len() < Self::MAX_UNWRITTEN {
            true => limit.saturating_sub(messages.count),
            false => 0,
        };
        messages.awaited = room == 0;
        room
    }

    /// Ready if there are answers: moves them behind `answers`. Pending, the task is woken by the next answer.
    pub(crate) fn poll_answers(&self, cx: &mut Context<'_>, answers: &mut Vec<Answer>) -> Poll<()> {
        let mut queued = lock(&self.queues.answers);
        if !queued.queue.is_empty() {
            answers.append(&mut queued.queue);
            return Poll::Ready(());
        }
        if !queued.publisher.as_ref().is_some_and(|publisher| publisher.will_wake(cx.waker())) {
            queued.publisher = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Moves the answers that are there behind `answers`.
    pub(crate) fn take_answers(&self, answers: &mut Vec<Answer>) {
        answers.append(&mut lock(&self.queues.answers).queue);
    }
}

impl Drop for ConfirmChannel {
    fn drop(&mut self) {
        // Its answers are kept from lapin until the channel is closed.
        self.queues.discard();
    }
}

/// Moves all bytes of `from` behind `to`, without a copy if `to` is empty.
fn transfer(from: &mut Vec<u8>, to: &mut Vec<u8>) {
    if to.is_empty() {
        std::mem::swap(from, to);
        return;
    }
    to.append(from);
    if from.capacity() > KEPT {
        *from = Vec::new();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
