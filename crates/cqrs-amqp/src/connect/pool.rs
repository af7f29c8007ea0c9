//! The connections as bb8 manages them; part of the connector.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::connection::Connection;
use super::dial::Dialer;
use crate::error::{AmqpError, ErrorKind};

/// bb8's manager of connections. A connection is shared with the channels opened on it and returned to the pool
/// at once: none is checked out while a confirm is awaited.
pub(super) struct Manager(pub(super) Dialer);

impl bb8::ManageConnection for Manager {
    type Connection = Arc<Connection>;
    type Error = AmqpError;

    async fn connect(&self) -> Result<Self::Connection, AmqpError> {
        let connection = self.0.dial().await?;
        tracing::info!(address = %self.0.address(), "connected");
        Ok(Arc::new(connection))
    }

    async fn is_valid(&self, connection: &mut Self::Connection) -> Result<(), AmqpError> {
        match connection.is_up() {
            true => Ok(()),
            false => Err(AmqpError::new(ErrorKind::ConnectionLost, "the connection is closed")),
        }
    }

    fn has_broken(&self, connection: &mut Self::Connection) -> bool {
        !connection.is_up()
    }
}

/// Receives bb8's connection errors: `Pool::get` itself would only time out.
#[derive(Debug, Clone)]
pub(super) struct Sink(pub(super) mpsc::UnboundedSender<AmqpError>);

impl bb8::ErrorSink<AmqpError> for Sink {
    fn sink(&self, error: AmqpError) {
        let _or_the_connector_is_gone = self.0.send(error);
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<AmqpError>> {
        Box::new(self.clone())
    }
}
