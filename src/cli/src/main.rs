//! src/cli.
fn main() {}
