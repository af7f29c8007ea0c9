//! `serve`: this framework as another one's program, to compare builds of it.

use std::io::{BufRead as _, Write as _};
use std::sync::Arc;

use cqrs_core::Subscription;

use crate::consume::{decoding, filled, ours};
use crate::dispatch;
use crate::event::Template;
use crate::measure::Round;
use crate::peers::{Answer, Request};

/// Answers each request on stdin with a line on stdout.
///
/// # Errors
/// If a line is no request, or stdin or stdout fails.
pub(crate) async fn run() -> Result<(), String> {
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let request = serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
        let answer = serde_json::to_string(&answer(request).await).expect("an answer");
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn answer(request: Request) -> Answer {
    let round = match request {
        Request::Dispatch { calls, middlewares, fail } => {
            dispatch::ours(&dispatch::mediator(middlewares), calls, fail).await
        }
        Request::Memory { messages, concurrency, codec, body } => {
            memory(messages, concurrency, &Template::new(codec, body)).await
        }
        Request::Publish { .. } | Request::Consume { .. } => {
            return Answer::Unsupported { unsupported: "only what needs no server".to_owned() };
        }
    };
    match (round.values.as_slice(), round.cpu_us) {
        (&[value], Some(cpu_us)) => Answer::Measured { value, cpu_us, cores: round.cores },
        _ => Answer::Failed { error: "a round has one figure".to_owned() },
    }
}

async fn memory(messages: usize, concurrency: usize, template: &Template) -> Round {
    let topic: Arc<str> = "bench".into();
    let broker = filled(&topic, messages, template).await;
    let to = Subscription::to("bench").group("bench");
    let to = to.concurrency(concurrency).max_unsettled(1_000);
    ours(broker, decoding(template, to), messages).await
}
