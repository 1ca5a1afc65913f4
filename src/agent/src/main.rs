//! src/agent.
fn main() {}
