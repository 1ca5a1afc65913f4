//! src/probe.
fn main() {}
