mod faults;
mod interleavings;
mod publishing;
mod stress;
mod subscribing;
