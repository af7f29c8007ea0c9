//! Tests of the memory broker's publishing and subscribing.

mod faults;
mod interleavings;
mod publishing;
mod sources;
mod stress;
mod subscribing;
mod wakeups;
