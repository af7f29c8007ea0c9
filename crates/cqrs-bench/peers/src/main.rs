//! Other Rust frameworks, for the benchmarks of `cqrs-bench`: answers each request on stdin with a line on stdout.
//!
//! `cqrs-bench-peers ruststream | hexeract`. See `README.md`.

// Shared with the harness, so that all decode the same bytes into the same type.
#[path = "../../src/cpu.rs"]
mod cpu;
#[allow(dead_code)] // the harness uses all of it
#[path = "../../src/event.rs"]
mod event;
mod hexeract;
mod meter;
#[path = "../../src/protocol.rs"]
mod protocol;
mod publishing;
mod ruststream;

use std::error::Error;
use std::io::{BufRead as _, Write as _};

use crate::event::Codec;
use crate::protocol::{Answer, Request};

/// The answer to one request, or why there is none.
type Answered = Result<Answer, Box<dyn Error + Send + Sync>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Framework {
    Ruststream,
    Hexeract,
}

#[derive(clap::Parser)]
#[command(about = "Other frameworks, for the benchmarks of cqrs-bench")]
struct Args {
    framework: Framework,
    /// One thread, so that instructions can be counted.
    #[arg(long)]
    current_thread: bool,
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let Args { framework, current_thread } = clap::Parser::parse();
    let mut runtime = match current_thread {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(serve(framework))
}

async fn serve(framework: Framework) -> Result<(), Box<dyn Error + Send + Sync>> {
    let lines = std::io::stdin().lock().lines();
    for line in lines {
        let request: Request = serde_json::from_str(&line?)?;
        let answer = answer(framework, request)
            .await
            .unwrap_or_else(|error| Answer::Failed { error: error.to_string() });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

async fn answer(framework: Framework, request: Request) -> Answered {
    let codec = match &request {
        Request::Dispatch { .. } => Codec::Json,
        Request::Publish { codec, .. }
        | Request::Consume { codec, .. }
        | Request::Memory { codec, .. } => *codec,
    };
    if codec != Codec::Json {
        return Ok(unsupported("only JSON is measured"));
    }
    match framework {
        Framework::Ruststream => ruststream::answer(request).await,
        Framework::Hexeract => hexeract::answer(request).await,
    }
}

fn unsupported(why: &str) -> Answer {
    Answer::Unsupported { unsupported: why.to_owned() }
}
