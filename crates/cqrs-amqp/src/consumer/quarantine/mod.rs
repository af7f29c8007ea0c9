//! The quarantine of a source: messages that may have killed their process run alone, one at a time.
//!
//! A message that came back twice from lost consumers is a suspect. The server counts every message that
//! was prefetched, so that its count proves nothing. The source moves a suspect into the quarantine queue
//! (`{queue}.quarantine`): a confirmed copy, then an ack. From there messages are taken one by one, each only
//! when the runtime has no other, and no other is handed to the runtime until it is settled. So what the
//! server counts *in that queue* are deaths while the message ran alone, over any number of processes, and
//! lost connections, which the source that lost them subtracts.
//!
//! One message per process runs alone at a time. A source that finds another one's running goes on and looks
//! again a few seconds later. The other messages of a source wait for its suspects 60 s in all, or 10 s when
//! none of them runs; then its quarantine pauses for five minutes, in which suspects stay in their queue.
//!
//! A message that the runtime holds to try it later does not keep suspects waiting. So it may run beside one:
//! a process that it kills then counts for both, until it is a suspect itself.

pub(super) mod look;
pub(super) mod run;
pub(super) mod state;
