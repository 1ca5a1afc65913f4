//! src/jailer.
fn main() {}
