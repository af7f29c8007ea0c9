//! Containers of plain Kafka and RabbitMQ on their default ports, for test runs without
//! `scripts/brokers up`; started by `servers`.
//!
//! The secured and the proxied listeners and the fault tests need `scripts/brokers up`: their tests fail
//! and say so. A container outlives the test binary that started it, so that the next one finds it.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::SyncRunner;
use testcontainers::{GenericImage, ImageExt};

/// Set if a server accepts connections at `address`.
pub(crate) fn connects(address: &str) -> bool {
    let mut candidates = address.to_socket_addrs().into_iter().flatten();
    candidates.any(|to| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok())
}

/// Starts a container that serves `address`. `Err` says why there is none.
pub(crate) fn start(address: &str) -> Result<(), String> {
    // One test starts a container; the others of the binary wait and find it.
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if connects(address) {
        return Ok(());
    }
    let port = address.rsplit(':').next().unwrap_or_default();
    let (image, tag, port, ready) = match port {
        "9092" => ("apache/kafka", "4.3.1", 9092_u16, "Kafka Server started"),
        "5672" => ("rabbitmq", "4.3.6-management", 5672, "Server startup complete"),
        _ => return Err(format!("no container serves port {port}")),
    };
    let image = GenericImage::new(image, tag)
        .with_wait_for(WaitFor::message_on_stdout(ready))
        .with_mapped_port(port, port.tcp())
        .with_startup_timeout(Duration::from_secs(180));
    // On a thread of its own: the runner blocks, and the caller may be an async test.
    let container = thread::spawn(|| image.start().map_err(|error| error.to_string()))
        .join()
        .map_err(|_| "the container's start panicked".to_owned())??;
    // Dropping it would stop the server under the next test binary.
    std::mem::forget(container);
    Ok(())
}
