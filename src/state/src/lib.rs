//! Versioned device state container.
