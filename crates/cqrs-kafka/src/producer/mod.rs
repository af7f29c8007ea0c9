//! The producing half: an admitted message goes to librdkafka, and its delivery report resolves the receipt.
//!
//! * [`handle`]: [`ProducerHandle`], which the async side and the poll thread share. It admits messages, and gives
//!   them to the [`client`], or to the [`overflow`] queue while librdkafka cannot take them.
//! * [`supervisor`]: the poll thread. It serves librdkafka's events, replaces a client that failed, and closes.
//! * [`context`]: librdkafka's callbacks. Delivery reports confirm a message or fail it ([`delivery_error`]).
//! * [`oversized`], [`resend`]: batches that the broker refused as too large, and how they are sent again.
//! * [`record`]: a message as a Kafka record.

mod client;
mod context;
mod delivery_error;
mod handle;
mod outgoing;
mod overflow;
mod oversized;
mod record;
mod resend;
mod supervisor;

pub(crate) use self::handle::ProducerHandle;
pub(crate) use self::outgoing::Raw;
pub(crate) use self::supervisor::start;
