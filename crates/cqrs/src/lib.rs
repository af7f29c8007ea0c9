//! CQRS mediators and reliable event messaging on Kafka and RabbitMQ.
//!
//! Commands and queries go through a [`Mediator`] to their one handler. What happened is told with
//! events: a [`DomainEvent`] to handlers in this process, a [`Notification`] to other services,
//! through a [`MessageBroker`].
//!
//! ```
//! use cqrs::prelude::*;
//!
//! #[derive(Command)]
//! #[cqrs(response = usize)]
//! struct Greet {
//!     name: String,
//! }
//!
//! #[derive(DomainEvent)]
//! struct Greeted {
//!     name: String,
//! }
//!
//! struct Greeter;
//!
//! impl RequestHandler<Greet> for Greeter {
//!     async fn handle(&self, command: Greet, scope: &mut Scope) -> Result<usize, Infallible> {
//!         let letters = command.name.len();
//!         scope.emit(Greeted { name: command.name });
//!         Ok(letters)
//!     }
//! }
//!
//! struct Print;
//!
//! impl EventHandler<Greeted> for Print {
//!     async fn handle(&self, event: &Greeted, _scope: &mut Scope) -> Result<(), HandlerError> {
//!         println!("hello, {}", event.name);
//!         Ok(())
//!     }
//! }
//!
//! # use std::convert::Infallible;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mediator = Mediator::builder()
//!     .handle::<Greet, _>(Greeter)
//!     .event::<Greeted, _>(Print)
//!     .build()?;
//! assert_eq!(mediator.send(Greet { name: "Ada".to_owned() }).await?, 3);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! | feature | what it adds |
//! |---|---|
//! | `derive` (default) | the derives |
//! | `kafka` | `cqrs::kafka`: Apache Kafka, on librdkafka |
//! | `amqp` | `cqrs::amqp`: RabbitMQ, AMQP 0-9-1 |
//! | `full` | all of them |

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod prelude;

pub use cqrs_core::*;
#[cfg(feature = "derive")]
#[doc(inline)]
pub use cqrs_macros::{Command, DomainEvent, Notification, Query};

#[cfg(feature = "amqp")]
pub use cqrs_amqp as amqp;
#[cfg(feature = "kafka")]
pub use cqrs_kafka as kafka;
