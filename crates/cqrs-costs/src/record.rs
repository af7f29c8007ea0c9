//! The committed costs, `costs.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::callgrind::Cost;
use crate::scenario::Scenario;

/// An allocation in a few hundred messages is a buffer that grows.
const ALLOCATION_TOLERANCE: f64 = 0.02;

const HEAD: &str = "\
# Instructions and allocations per message, of the scenarios of `cqrs-costs`. `scripts/costs` fails if one is
# higher than here by more than its tolerance (3 %, for a consumer 5 %, on a server 15 %); `scripts/costs --update`
# writes them anew.
";

/// The costs of all scenarios.
pub(crate) struct Record(BTreeMap<String, Entry>);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    instructions: u64,
    allocations: f64,
}

/// A cost against its record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    /// Within the tolerance; the part by which it differs.
    Fits(f64),
    Higher(f64),
    Lower(f64),
    /// There is no record.
    Unknown,
}

impl Record {
    fn path() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("costs.toml")
    }

    pub(crate) fn read() -> Result<Self, String> {
        let path = Self::path();
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        toml::from_str(&text).map(Self).map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(crate) fn write(&self) -> Result<(), String> {
        let path = Self::path();
        let text = toml::to_string(&self.0).map_err(|error| error.to_string())?;
        fs::write(&path, format!("{HEAD}\n{text}"))
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(crate) fn set(&mut self, scenario: Scenario, cost: Cost) {
        let instructions = cost.instructions.round() as u64;
        let allocations = (cost.allocations * 100.0).round() / 100.0;
        self.0.insert(scenario.name(), Entry { instructions, allocations });
    }

    pub(crate) fn judge(&self, scenario: Scenario, cost: Cost) -> Verdict {
        let Some(known) = self.0.get(&scenario.name()) else { return Verdict::Unknown };
        let change = cost.instructions / known.instructions as f64 - 1.0;
        let allocations = known.allocations * (1.0 + scenario.tolerance()) + ALLOCATION_TOLERANCE;
        if change > scenario.tolerance() || cost.allocations > allocations {
            return Verdict::Higher(change);
        }
        match change < -scenario.tolerance() {
            true => Verdict::Lower(change),
            false => Verdict::Fits(change),
        }
    }
}

impl Verdict {
    pub(crate) fn line(self, scenario: Scenario, cost: Cost) -> String {
        let name = scenario.name();
        let Cost { instructions, allocations } = cost;
        let text = match self {
            Self::Fits(change) => format!("{:+.1} %", change * 100.0),
            Self::Higher(change) => format!("{:+.1} %: HIGHER than the record", change * 100.0),
            Self::Lower(change) => {
                format!("{:+.1} %: lower, commit it with --update", change * 100.0)
            }
            Self::Unknown => "NOT in the record: add it with --update".to_owned(),
        };
        format!("{name:22} {instructions:9.0} instructions {allocations:7.2} allocations   {text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_the_tolerance_is_higher() {
        let mut record = Record(BTreeMap::new());
        let cost = |instructions, allocations| Cost { instructions, allocations };
        let judge = |record: &Record, instructions, allocations| {
            record.judge(Scenario::Send, cost(instructions, allocations))
        };
        assert_eq!(judge(&record, 1_000.0, 2.0), Verdict::Unknown);
        record.set(Scenario::Send, cost(1_000.0, 2.0));
        assert!(matches!(judge(&record, 1_029.0, 2.0), Verdict::Fits(_)));
        assert!(matches!(judge(&record, 1_031.0, 2.0), Verdict::Higher(_)));
        assert!(matches!(judge(&record, 1_000.0, 2.1), Verdict::Higher(_)));
        assert!(matches!(judge(&record, 900.0, 1.0), Verdict::Lower(_)));
    }
}
