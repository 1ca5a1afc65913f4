//! SELinux contexts, the MCS ledger, relabelling and its journal.
