//! virtio and legacy device state machines.
