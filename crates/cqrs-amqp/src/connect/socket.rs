use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};

use socket2::Socket;

/// A handle on a connection's TCP socket beside lapin's own, to shut it from outside.
///
/// lapin's own ways to end a connection write a frame and wait: they do nothing while the server blocks
/// the connection or stops reading, and an abandoned handshake would keep its thread. A socket that is
/// shut wakes lapin's thread and ends it, whatever it waits for.
///
/// Dropping the last handle shuts the socket.
#[derive(Debug, Clone, Default)]
pub(super) struct SocketHandle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    NotYet,
    Open(Socket),
    Shut,
}

impl SocketHandle {
    /// Sets the socket; one that comes after [`shut`](Self::shut) is shut at once.
    pub(super) fn set(&self, socket: Socket) {
        let mut state = self.0.lock();
        match *state {
            State::Shut => shut(&socket),
            State::NotYet | State::Open(_) => *state = State::Open(socket),
        }
    }

    /// Ends the connection now, both ways. What lapin has not written is lost.
    pub(super) fn shut(&self) {
        self.0.shut();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut(&self) {
        if let State::Open(socket) = std::mem::replace(&mut *self.lock(), State::Shut) {
            shut(&socket);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.shut();
    }
}

fn shut(socket: &Socket) {
    let _already_gone = socket.shutdown(Shutdown::Both);
}
