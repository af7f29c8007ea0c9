//! A handle on a connection's TCP socket, to shut it from outside of lapin; used by the connection.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};

use socket2::Socket;

/// A handle on a connection's TCP socket beside lapin's own.
///
/// lapin closes a connection by writing a frame and waiting: that has no effect while the server blocks
/// the connection or stops reading, and an abandoned handshake would keep its thread. Shutting the socket wakes
/// lapin's thread and ends it in any case.
///
/// Dropping the last handle shuts the socket.
#[derive(Debug, Clone, Default)]
pub(super) struct SocketHandle(Arc<SharedSocket>);

#[derive(Debug, Default)]
struct SharedSocket(Mutex<SocketState>);

#[derive(Debug, Default)]
enum SocketState {
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
            SocketState::Shut => shut(&socket),
            SocketState::NotYet | SocketState::Open(_) => *state = SocketState::Open(socket),
        }
    }

    /// Shuts the socket in both directions. Frames that lapin has not written are lost.
    pub(super) fn shut(&self) {
        self.0.shut();
    }
}

impl SharedSocket {
    fn lock(&self) -> std::sync::MutexGuard<'_, SocketState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut(&self) {
        if let SocketState::Open(socket) = std::mem::replace(&mut *self.lock(), SocketState::Shut) {
            shut(&socket);
        }
    }
}

impl Drop for SharedSocket {
    fn drop(&mut self) {
        self.shut();
    }
}

fn shut(socket: &Socket) {
    let _already_gone = socket.shutdown(Shutdown::Both);
}
