//! Messages between host and guest agent.
