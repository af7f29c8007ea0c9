//! A kit for authors of sources: names, checks of a request, deadlines, error texts and copied headers that all brokers
//! share.

mod check;
mod deadline;
mod names;

pub use check::{own_dead_letters, request_problems};
pub use deadline::far_deadline;
pub use names::{delay_text, group_problem, retry_name, topic_group_name};

pub use crate::error::error_chain;
pub use crate::message::packed::{PackedHeader, PackedHeaders, PackedPairs, put_packed};
