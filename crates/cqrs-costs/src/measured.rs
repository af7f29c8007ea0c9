//! The part of a run that is counted.

use std::future::Future;

use tokio::runtime::Runtime;

/// The function that valgrind counts, on the thread that calls it.
pub(crate) const COUNTED: &str = "cqrs_costs::measured::counted";

#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    run();
}

/// Counts `run`.
pub(crate) fn measured<T>(run: impl FnOnce() -> T) -> T {
    let (mut run, mut result) = (Some(run), None);
    counted(&mut || result = run.take().map(|run| run()));
    result.expect("it was run")
}

/// A runtime that runs all its tasks on the calling thread, in [`Runtime::block_on`].
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Counts the tasks that run until `future` ends.
pub(crate) fn block_on<T>(runtime: &Runtime, future: impl Future<Output = T>) -> T {
    measured(|| runtime.block_on(future))
}
