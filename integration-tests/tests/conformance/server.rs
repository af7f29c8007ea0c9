//! [`Server`]: a real server shared by the cases of the conformance suite; used by both harnesses.

use std::sync::{Arc, LazyLock};

use cqrs_testkit::FaultProxy;
use cqrs_testkit::conformance::Fault;
use integration_tests::amqp;
use integration_tests::control::brokers;
use tokio::sync::{Mutex, OwnedRwLockReadGuard, RwLock};

static SERVERS: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

/// The server, shared by the cases that leave it running, and the proxy of a case with faults.
pub(crate) struct Server {
    name: &'static str,
    shared: Mutex<Option<OwnedRwLockReadGuard<()>>>,
    proxy: Mutex<Option<FaultProxy>>,
}

/// Looking for a server, or starting one, blocks.
pub(crate) async fn blocking<T: Send + 'static>(look: fn() -> T) -> T {
    let found = tokio::task::spawn_blocking(look).await;
    found.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl Server {
    pub(crate) async fn share(name: &'static str) -> Self {
        let shared = Mutex::new(Some(Arc::clone(&SERVERS).read_owned().await));
        Self { name, shared, proxy: Mutex::default() }
    }

    /// Puts `proxy` in the place of the last one, which resets its connections.
    pub(crate) async fn set_proxy(&self, proxy: Option<FaultProxy>) {
        *self.proxy.lock().await = proxy;
    }

    /// RabbitMQ's dsn; with faults, that of a new proxy in front of it.
    pub(crate) async fn amqp_dsn(&self, with_faults: bool) -> String {
        let dsn = blocking(amqp::dsn).await;
        if !with_faults {
            return dsn;
        }
        let address = blocking(amqp::address).await;
        let proxy = FaultProxy::start("127.0.0.1:0", address.as_str()).await.unwrap();
        let proxied = dsn.replace(&address, &proxy.address().to_string());
        self.set_proxy(Some(proxy)).await;
        proxied
    }

    pub(crate) async fn inject(&self, fault: Fault<'_>) {
        if matches!(fault, Fault::Restart) {
            return self.restart().await;
        }
        let proxy = self.proxy.lock().await;
        let proxy = proxy.as_ref().expect("a case with faults");
        match fault {
            Fault::Stall { .. } | Fault::Hang => proxy.stall(true),
            Fault::Resume { .. } | Fault::Respond => proxy.stall(false),
            Fault::Cut => proxy.cut(),
            Fault::Disconnect => {
                proxy.refuse(true);
                proxy.cut();
            }
            Fault::Reconnect => proxy.refuse(false),
            undeclared => panic!("{undeclared:?} is not declared"),
        }
    }

    /// Alone: the other cases of this process are done, or have not begun.
    async fn restart(&self) {
        let mut shared = self.shared.lock().await;
        drop(shared.take());
        let alone = SERVERS.write().await;
        for command in ["stop", "start"] {
            brokers(&[command, self.name]).await;
        }
        drop(alone);
        *shared = Some(Arc::clone(&SERVERS).read_owned().await);
    }
}
