//! Tests of the stream in a model of lapin's loop: no wake-up is lost and neither side starves.

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Readable,
    Writable,
}

/// The events of lapin's wakers, in order.
type Events = Arc<std::sync::Mutex<VecDeque<Event>>>;

struct WakeLapin(Events, Event);

impl Wake for WakeLapin {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap().push_back(self.1);
    }
}

/// lapin's loop, as it is in lapin 4.12: `IoLoop::run` and what it calls.
struct Lapin {
    stream: Filtered<Socket>,
    channels: ConfirmChannels,
    events: Events,
    readable: bool,
    writable: bool,
    /// What it has to write.
    data: Vec<u8>,
}

impl Lapin {
    fn new() -> Self {
        let channels = ConfirmChannels::default();
        let socket = Socket { space: Some(1 << 20), ..Socket::default() };
        let stream = Filtered::noting(socket, None, channels.clone(), FirstByte::default());
        let data = bytes(&AMQPFrame::ProtocolHeader(ProtocolVersion::amqp_0_9_1()));
        let (readable, writable) = (true, true);
        let mut lapin =
            Self { stream, channels, events: Events::default(), readable, writable, data };
        lapin.run();
        lapin.stream.socket_mut().written.clear();
        lapin.stream.socket_mut().space = Some(0);
        lapin
    }

    fn poll_events(&mut self) {
        for event in self.events.lock().unwrap().drain(..) {
            match event {
                Event::Readable => self.readable = true,
                Event::Writable => self.writable = true,
            }
        }
    }

    /// A turn. False: it waits for an event.
    fn turn(&mut self) -> bool {
        self.poll_events();
        let can_write = self.writable && !self.data.is_empty();
        if !self.readable && !can_write {
            return false;
        }
        let [reader, writer] = [Event::Readable, Event::Writable]
            .map(|event| Waker::from(Arc::new(WakeLapin(Arc::clone(&self.events), event))));
        let (mut reading, mut writing) =
            (Context::from_waker(&reader), Context::from_waker(&writer));
        self.writable &= Pin::new(&mut self.stream).poll_flush(&mut writing).is_ready();
        while self.writable && !self.data.is_empty() {
            match Pin::new(&mut self.stream).poll_write(&mut writing, &self.data) {
                Poll::Ready(written) => {
                    self.data.drain(..written.unwrap());
                    self.writable &= Pin::new(&mut self.stream).poll_flush(&mut writing).is_ready();
                }
                Poll::Pending => self.writable = false,
            }
        }
        let mut part = [0; 100];
        while self.readable {
            self.readable =
                Pin::new(&mut self.stream).poll_read(&mut reading, &mut part).is_ready();
        }
        true
    }

    fn run(&mut self) {
        while self.turn() {}
    }

    /// The server reads: that many bytes fit into the socket's buffer.
    fn free(&mut self, space: usize) {
        let socket = self.stream.socket_mut();
        socket.space = Some(space);
        if let Some(writer) = socket.writer.take() {
            writer.wake();
        }
    }
}

#[test]
fn lapin_writes_while_a_publisher_saturates_the_socket() {
    let mut lapin = Lapin::new();
    let channel = lapin.channels.open(1);
    let lapin_bytes = bytes(&close_ok(9));
    for round in 0..20 {
        while channel.room(8) > 0 {
            send(&channel, &"x".repeat(300));
        }
        if round == 5 {
            lapin.data = lapin_bytes.clone();
        }
        lapin.run();
        lapin.free(1_000);
        lapin.turn();
    }
    assert!(lapin.data.is_empty(), "it starves");
}

#[derive(Debug, Clone)]
enum Action {
    Send(usize),
    Lapin,
    Free(usize),
    Run,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whenever the socket becomes writable, lapin's loop goes on until all is written.
    #[test]
    fn no_wake_up_is_lost(actions in proptest::collection::vec(prop_oneof![
        3 => (0..900_usize).prop_map(Action::Send),
        1 => Just(Action::Lapin),
        4 => (0..700_usize).prop_map(Action::Free),
        5 => Just(Action::Run),
    ], 1..80)) {
        let mut lapin = Lapin::new();
        let channel = lapin.channels.open(1);
        let (mut sent, mut frames) = (0, 0);
        for action in actions {
            match action {
                Action::Send(body) => {
                    send(&channel, &"x".repeat(body + 1));
                    sent += 1;
                }
                Action::Lapin => {
                    lapin.data.extend(bytes(&close_ok(9)));
                    // As a wake-up by lapin itself.
                    lapin.readable = true;
                    frames += 1;
                }
                Action::Free(space) => lapin.free(space),
                Action::Run => drop(lapin.turn()),
            }
        }
        for _ in 0..2_000 {
            lapin.run();
            lapin.free(200);
        }
        let written = parsed(&lapin.stream.socket_mut().written);
        prop_assert_eq!(written.len(), 3 * sent + frames);
    }
}
