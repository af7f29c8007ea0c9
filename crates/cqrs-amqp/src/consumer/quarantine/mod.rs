//! The quarantine of a source: messages that may have killed their process run one at a time.
//!
//! A message that lost consumers returned twice is a candidate. The server also counts messages that were only
//! prefetched, so the count proves nothing. The source moves a candidate into the quarantine queue
//! (`{queue}.quarantine`): a confirmed copy, then an ack. From there messages are taken one by one, each only
//! when the runtime has no other, and no other is handed out until it is settled. So the returns that the
//! server counts *in that queue* are crashes of that message, over any number of processes, and lost
//! connections, which the source that lost them subtracts.
//!
//! One quarantined message per process runs at a time. If another source is running one, a source goes on
//! and tries again a few seconds later. The other messages of a source wait for quarantined ones 60 s in all,
//! or 10 s if none of them runs; then its quarantine pauses for five minutes, in which the quarantined messages
//! stay in their queue.
//!
//! A message that the runtime holds for a retry does not delay the quarantine, so it may run beside a
//! quarantined one: a crash that it causes counts for both, until it is quarantined itself.

pub(super) mod inspect;
pub(super) mod run;
pub(super) mod state;
