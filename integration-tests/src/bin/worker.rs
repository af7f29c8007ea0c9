//! A consumer in its own process, which fault tests kill. Its argument are its options as JSON; it ends on
//! SIGTERM.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cqrs_core::MessageBroker;
use integration_tests::consuming::journal::Journal;
use integration_tests::consuming::run;
use integration_tests::consuming::work::WorkerOptions;
use tracing_subscriber::EnvFilter;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,lapin=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let options = std::env::args().nth(1).expect("the options");
    let options: WorkerOptions = serde_json::from_str(&options).expect("options as JSON");
    let journal = Arc::new(Journal::open(&options.journal).expect("the journal"));
    let broker = run::broker(options.broker, &options.exchange, options.makes_dead_letter_target);
    let service = run::service(&options, Arc::clone(&broker), Arc::clone(&journal));
    let (health, ready) = (service.health(), Arc::clone(&journal));
    tokio::spawn(async move {
        while !health.is_ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ready.ready();
    });
    let ended = service.run().await;
    let _undelivered = broker.shutdown(Duration::from_secs(2)).await;
    let (text, code) = match ended {
        Ok(report) => (format!("{report:?}"), ExitCode::SUCCESS),
        Err(error) => (format!("{error}"), ExitCode::FAILURE),
    };
    journal.report(&text.replace('\n', " "));
    code
}
