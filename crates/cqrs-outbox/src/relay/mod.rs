//! The relay: publishes the rows of the outbox, at least once and in order per key.
//!
//! # The protocol
//! A row is inserted once, read by the relay that owns its lane, published, and deleted once its publish is
//! confirmed. Nothing else makes a row go: its presence is the fact, all cursors are hints for speed.
//!
//! * [`lanes`], [`lane`], [`reader`]: the pure state of the owned lanes. What to read, what to publish next, and what
//!   became of it. No time of its own, no database, no broker.
//! * [`snapshot`], `trailing` (MySQL): which ids may still appear below those that were read.
//!
//! # Invariants
//! 1. **Nothing is lost.** A row leaves the table in one of two ways: deleted after the broker's confirm, or
//!    moved to the parked or dead rows in one statement. A relay that ends at any point leaves the row, or
//!    its confirmed message.
//! 2. **Order.** One row of a key is in flight. The next one starts after its confirm, so whoever publishes
//!    a row knows that the earlier ones of its key are confirmed, parked before it, dead, or gone by the
//!    hand of another relay that confirmed them. Hence a second publisher of a lane (a zombie) repeats
//!    messages, and never puts a first delivery before another.
//! 3. **Late rows.** Ids are not commit order. The rows of a hot read (`id` above the highest seen) start
//!    only after a late read with a later snapshot has looked for rows that became visible below it. If the
//!    earlier row of a key was committed before the id of the later one was taken, it is found in time.
//!    Writers that break that rule lose the order; the sweep, which reads all ids, still finds their rows.
//!    MySQL shows no snapshots: there a late read looks at the ids of the last minute (a setting), and a transaction
//!    that is open for longer breaks the rule. MariaDB does not make the snapshot of a statement in an instant. A
//!    hot read may have the later row and not the earlier one, so there the late read looks up to the highest row of
//!    the hot read, not only below it.
//! 4. **Known rows.** A lane knows the rows that it holds, until their removal is through and no read that
//!    began before runs. So no read brings a row back that is published.
//!    A row is its id and its event's id: after a failover that lost the end of the sequence another row may
//!    have the id, and is neither known nor deleted for it.
//! 5. **Ownership.** A lane's epoch grows with each change of its owner. Reading rows is fenced by it, in the
//!    same snapshot: a zombie would not know the keys that the new owner has parked. Parking and declaring
//!    dead are fenced, as the new owner relies on the parked rows that it found. Deleting a confirmed row is
//!    not: it is right whoever does it.
//! 6. **Parked keys.** The parked rows of a key come before those in the outbox table. So rows are parked in
//!    order, one statement at a time, and those that are read while the key is parked go behind the others,
//!    until all are published.

mod builder;
mod driver;
mod effects;
mod failed;
#[cfg(feature = "postgres")]
mod history;
mod key;
mod lane;
mod lanes;
mod membership;
mod moves;
mod operations;
mod outage;
mod part;
mod publisher;
#[cfg(feature = "postgres")]
mod python;
mod reader;
mod reads;
mod settings;
mod share;
mod snapshot;
mod statements;
mod status;
mod store;
mod trailing;

#[cfg(test)]
mod simulation;

pub use builder::{Relay, RelayBuilder, RelayHandle};
pub use failed::FailedRow;
pub use operations::{FailedCount, FailedFilter};
#[cfg(feature = "postgres")]
pub use python::{PythonRelay, PythonRelayBuilder, PythonRelayHandle};
pub use status::{OutboxStatus, RelayInfo, RelayReport, RelayStatus};
pub use store::RelayDatabase;
