mod arrival;
mod errors;
mod many;
mod order;
mod recovery;
mod shutdown;
mod window;

pub(super) use arrival::*;
pub(super) use errors::*;
pub(super) use many::*;
pub(super) use order::*;
pub(super) use recovery::*;
pub(super) use shutdown::*;
pub(super) use window::*;
