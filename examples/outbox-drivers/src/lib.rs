//! The outbox with other drivers than sqlx: a handler's writes and the events that it emits are one transaction
//! of the driver that the application uses already. Copy the module of your driver.
//!
//! Each module has a factory, which is given to a mediator with `.outbox(..)`, and the unit of work that
//! handlers get with `scope.unit_of_work::<..>()`. The statement is that of `Tables::insert`, whose ten
//! parameters are the fields of `NewRow` in their order, each an array over the rows. The relay, which may be in
//! another process, reads the rows with sqlx.

pub mod diesel_async;
pub mod sea_orm;
pub mod tokio_postgres;
