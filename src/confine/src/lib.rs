//! One file per confinement layer: probe, apply, attest.
