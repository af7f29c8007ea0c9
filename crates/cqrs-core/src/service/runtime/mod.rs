//! The engine of a service: fetches deliveries, handles them in order per key, and settles them.
//!
//! ```text
//! task ── starts ── worker ── scheduler (source, lanes) ── process ── read ── middlewares ── handler
//!                               ▲                             │
//!                               └── hold until due ───────────┤
//!                                                             └── settle: ack | retry copy | dead letter
//! ```
//!
//! * [`task`]: one subscription from its start to its end; owns the workers.
//! * [`scheduler`]: all that is under the subscription's lock: the source, the lanes, the idle workers.
//! * [`worker`] and [`batch`]: the loops that take jobs from the scheduler.
//! * [`process`], [`read`] and [`middlewares`]: one message: decode it, handle it, retry it.
//! * [`prepared`]: the same in fewer steps for a mediator's handlers, the common case.
//! * [`settle`]: acks, retry copies, dead letters, and what the broker refuses.
//! * [`context`]: the configuration, the scheduler and the monitor that these share.
//!
//! # Invariants
//! 1. Every job ([`job::Job`]) is owned by exactly one of: the lanes, a worker, a manual
//!    [`Delivery`](super::Delivery). A dropped job is given back to the broker; only
//!    [`Settle::poll_ack`](crate::consume::Settle::poll_ack) settles it.
//! 2. A worker acks only after the handler returned `Ok`, a retry copy or dead letter was confirmed, or a
//!    policy requires it. A panic is caught inside the attempt. An aborted worker drops its jobs.
//! 3. At most `concurrency` workers exist. Each runs at most one job at a time (a batch worker one batch).
//!    The jobs it took beyond that one go back to the lanes as soon as that one has to wait.
//! 4. After `stop` no job is started. After the workers are aborted, none runs.
//! 5. An idle worker is woken while there is a job to take, or a source that is not polled.
//! 6. The lock is never held across an `.await`, nor while user code runs (a dropped job runs some). The
//!    exception is [`Settle::is_revoked`](crate::consume::Settle::is_revoked), which must be cheap.

mod backoff;
mod batch;
mod context;
mod failure;
mod fetch;
mod guard;
mod handler;
mod held;
mod held_events;
mod job;
mod lanes;
mod middlewares;
mod monitor;
mod outcome;
mod prepared;
mod process;
mod read;
mod repeats;
mod routes;
mod scheduler;
mod settle;
mod spec;
mod stop_flag;
mod task;
mod undelivered;
mod worker;

pub(super) use failure::AttemptFailure;
pub(super) use handler::{
    Attempted, BatchLimits, EachHandler, Events, HandlerKind, INBOX_WITHOUT_OUTBOX,
};
pub(super) use job::{Job, log_dead_letter, log_unacked};
pub(super) use monitor::{Counter, Counters, Monitor};
pub(super) use outcome::ManualOutcome;
pub(super) use routes::Routes;
pub(super) use spec::{Limits, Spec};
pub(super) use task::{PlannedSubscription, SubscriptionEnd, run_subscription};
