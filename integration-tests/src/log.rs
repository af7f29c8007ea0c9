//! The log of a test process: warnings are shown with a failing test, and tests that search for secrets read
//! all of it.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::Registry;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::{MakeWriter, TestWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;

static KEPT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Keeps the log, and prints warnings.
struct Writer {
    shown: Option<TestWriter>,
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(shown) = &mut self.shown {
            shown.write_all(bytes)?;
        }
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Writers;

impl MakeWriter<'_> for Writers {
    type Writer = Writer;

    fn make_writer(&self) -> Writer {
        Writer { shown: None }
    }

    fn make_writer_for(&self, meta: &tracing::Metadata<'_>) -> Writer {
        let is_warning = *meta.level() <= tracing::Level::WARN;
        Writer { shown: is_warning.then(TestWriter::new) }
    }
}

/// The one subscriber of the process, set by the first caller.
fn level() -> &'static Handle<LevelFilter, Registry> {
    static LEVEL: OnceLock<Handle<LevelFilter, Registry>> = OnceLock::new();
    LEVEL.get_or_init(|| {
        let (filter, level) = reload::Layer::new(LevelFilter::WARN);
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Writers);
        tracing_subscriber::registry().with(filter).with(lines).init();
        level
    })
}

/// Prints warnings with a test's output, which is shown when it fails.
pub fn show_warnings() {
    level();
}

/// Keeps all that is logged from now on, at every level.
pub fn capture() {
    level().reload(LevelFilter::TRACE).expect("the subscriber lives as long as the process");
}

/// The log since [`capture`], and possibly earlier warnings.
pub fn captured() -> String {
    String::from_utf8_lossy(&KEPT.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}
