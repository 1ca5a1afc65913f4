//! Block back ends and image locks.
