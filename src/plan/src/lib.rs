//! Pure planning: (SandboxSpec, HostFacts) to ordered steps with reasons.
