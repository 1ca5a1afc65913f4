//! What was asked: CLI, TOML and JSON wire forms to a checked SandboxSpec.
