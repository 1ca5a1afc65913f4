//! src/runner.
fn main() {}
