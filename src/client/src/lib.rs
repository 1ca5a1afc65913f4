//! Starts the jailer and follows a VM.
