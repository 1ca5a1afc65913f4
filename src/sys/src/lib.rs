//! Thin safe wrappers over Linux system calls, and the host facts.
