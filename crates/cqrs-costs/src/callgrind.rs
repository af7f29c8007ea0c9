//! Runs a scenario under callgrind and reads what it counted.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::measured::COUNTED;
use crate::scenario::Scenario;

/// What Rust code calls to allocate. Those of the C library below are no measure: callgrind keeps their calls from
/// before the counting.
const ALLOCATORS: [&str; 3] =
    ["__rustc::__rust_alloc", "__rustc::__rust_alloc_zeroed", "__rustc::__rust_realloc"];

/// The cost of one message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
}

impl Cost {
    pub(crate) fn least(self, other: Self) -> Self {
        Self {
            instructions: self.instructions.min(other.instructions),
            allocations: self.allocations.min(other.allocations),
        }
    }
}

/// What one run counted in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counted {
    instructions: u64,
    allocations: u64,
}

pub(crate) fn cost_of(scenario: Scenario) -> Result<Cost, String> {
    let [few, many] = scenario.counts();
    let (of_few, of_many) = (run(scenario, few)?, run(scenario, many)?);
    let per_message = |few_counted: u64, many_counted: u64| {
        (many_counted as f64 - few_counted as f64) / (many - few) as f64
    };
    Ok(Cost {
        instructions: per_message(of_few.instructions, of_many.instructions),
        allocations: per_message(of_few.allocations, of_many.allocations),
    })
}

fn run(scenario: Scenario, count: usize) -> Result<Counted, String> {
    let name = scenario.name();
    let directory = env::temp_dir().join(format!("cqrs-costs-{}-{name}", std::process::id()));
    fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let counted = run_in(&directory, &name, count);
    if let Err(error) = fs::remove_dir_all(&directory) {
        eprintln!("cqrs-costs: {}: {error}", directory.display());
    }
    counted
}

/// Calls are counted outside of `COUNTED`, too, and on all threads: so the counts start with it and are written at
/// its end, for each thread alone.
fn run_in(directory: &Path, name: &str, count: usize) -> Result<Counted, String> {
    let program = env::current_exe().map_err(|error| format!("its own path: {error}"))?;
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--separate-threads=yes"])
        .args(
            ["--toggle-collect", "--zero-before", "--dump-after"]
                .map(|option| format!("{option}={COUNTED}")),
        )
        .arg(format!("--callgrind-out-file={}", directory.join("out").display()))
        .arg(program)
        .args(["run", name, &count.to_string()])
        .output()
        .map_err(|error| {
            format!("valgrind cannot be started ({error}): scripts/costs installs it")
        })?;
    if !ran.status.success() {
        let errors = String::from_utf8_lossy(&ran.stderr);
        return Err(format!("{name} with {count} messages failed ({}):\n{errors}", ran.status));
    }
    let mut counted = Counted::default();
    let files =
        fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    for file in files {
        let path = file.map_err(|error| format!("{}: {error}", directory.display()))?.path();
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        // Threads and phases that were not counted have no instructions.
        if let Some(part) = parse(&text).filter(|part| part.instructions > 0) {
            counted.instructions += part.instructions;
            counted.allocations += part.allocations;
        }
    }
    match counted.instructions {
        0 => Err(format!("{name}: nothing was counted in `{COUNTED}`")),
        _ => Ok(counted),
    }
}

/// Reads callgrind's format: `totals: N` is the instructions; a call is `cfn=(id) name`, the name at the first
/// use of the id alone, and then `calls=N ..`.
fn parse(text: &str) -> Option<Counted> {
    let (mut counted, mut names, mut callee) = (Counted::default(), HashMap::new(), None);
    let mut total = None;
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
            let (id, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            callee = line.starts_with("cfn=").then_some(id);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let allocates =
                callee.and_then(|id| names.get(id)).is_some_and(|name| ALLOCATORS.contains(name));
            if allocates {
                counted.allocations += calls.split(' ').next()?.parse::<u64>().ok()?;
            }
        } else if let Some(sum) = line.strip_prefix("totals: ") {
            total = sum.trim().parse().ok();
        }
    }
    counted.instructions = total?;
    Some(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_the_calls_of_the_allocators() {
        let text = "fn=(1) work\n10 5\ncfn=(2) __rustc::__rust_alloc\ncalls=3 0\n10 60\ncfn=(3) free\ncalls=3 0\n11 6\n\
                    fn=(2)\n1 60\ncfn=(4) malloc\ncalls=3 0\n1 50\nfn=(5) more\ncfn=(2)\n\
                    calls=4 0\n12 9\n\ntotals: 130\n";
        assert_eq!(parse(text), Some(Counted { instructions: 130, allocations: 7 }));
    }

    #[test]
    fn output_without_a_total_is_none() {
        assert_eq!(parse("fn=(1) work\n10 5\n"), None);
    }
}
