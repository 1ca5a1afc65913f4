//! SELinux contexts, the MCS ledger, relabelling and its journal.
//!
//! Trust: runs with root's rights, and only in the jailer and its warden half; no other
//! binary links this room. See README.md for the order of calls.
//!
//! | file | purpose |
//! |---|---|
//! | `context` | contexts, levels, category sets: parse, compare, print |
//! | `profile` | the type names of a labelling family (ours, libvirt's) |
//! | `contexts` | the policy's own files: libvirt's and the container tools' types |
//! | `families` | which family is taken, what it lacks and what it leaves open |
//! | `mode` | what the loaded policy really separates: `probe()` |
//! | `live` | levels of running processes |
//! | `ledger` | leases: MCS pairs, uids, static levels |
//! | `relabel`, `guard`, `store` | labels on files: set |
//! | `record`, `restore`, `fallback` | the owner record; labels given back |
//! | `choice`, `judge` | labels that are asked for or cannot be changed: what the loaded policy makes of them |
//! | `journal`, `undo` | intents before every host change; undo in reverse |
//! | `transaction` | several labels, all or none |
//! | `exec_label` | labels of processes through a verified procfs |
#![forbid(unsafe_code)]

mod choice;
pub mod context;
pub mod contexts;
pub mod exec_label;
mod fallback;
pub mod families;
mod guard;
pub mod journal;
pub mod judge;
pub mod ledger;
pub mod live;
pub mod mode;
pub mod owner;
pub mod profile;
pub mod record;
pub mod relabel;
mod relabel_error;
pub mod restore;
pub mod store;
pub mod transaction;
pub mod undo;

pub use choice::{Ask, Choice};
pub use context::{Category, CategoryPair, CategorySet, Context, ContextError, Level, Range};
pub use exec_label::{ProcError, VerifiedProc};
pub use families::{Chosen, ProfileName, choose};
pub use journal::{Intent, Journal, JournalError};
pub use ledger::{DEFAULT_UIDS, Lease, LeaseKey, Ledger, LedgerError, UidRange};
pub use live::LiveLevels;
pub use mode::{SelinuxFacts, SelinuxMode, probe};
pub use owner::Owner;
pub use profile::Profile;
pub use relabel::{Held, LabelClass, Outcome, RelabelError, Relabeler, Restored};
pub use transaction::Transaction;
pub use undo::{UndoOutcome, UndoReport, Undoer};
