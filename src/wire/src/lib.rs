//! Framed, size-capped messages between the roles.
