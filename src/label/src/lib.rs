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
//! | `mode`, `questions`, `selinuxfs` | what the loaded policy really separates: `probe()`, `verify()` |
//! | `configured` | the policy that /etc names, against the loaded one |
//! | `watch` | news of the loaded policy, without asking all the time |
//! | `transition` | would an exec end in the runner's domain, and why not |
//! | `window` | which categories and sensitivity a caller may lease |
//! | `in_use` | who has which level: `processes`, `libvirt`, `containers` (both by `managers`), `images` |
//! | `pairs` | which pairs are out of reach of all of them |
//! | `ledger`, `ledger_files`, `lease_key` | leases: MCS pairs, uids, fixed levels |
//! | `relabel`, `guard`, `places`, `store` | labels on files: set |
//! | `record`, `restore`, `fallback` | the owner record; labels given back |
//! | `choice`, `judge` | labels that are asked for or cannot be changed: what the loaded policy makes of them |
//! | `journal`, `undo`, `undo_label` | intents before every host change; undo in reverse |
//! | `durable` | label intents that outlive a reboot |
//! | `transaction` | several labels, all or none |
//! | `exec_label` | labels of processes through a verified procfs |
#![forbid(unsafe_code)]

mod choice;
mod configured;
mod containers;
pub mod context;
pub mod contexts;
pub mod durable;
pub mod exec_label;
mod fallback;
pub mod families;
mod guard;
mod images;
pub mod in_use;
pub mod journal;
pub mod judge;
mod lease_key;
pub mod ledger;
mod ledger_files;
mod libvirt;
mod managers;
pub mod mode;
pub mod owner;
pub mod pairs;
mod places;
pub mod processes;
pub mod profile;
mod questions;
mod random;
pub mod record;
pub mod relabel;
mod relabel_error;
pub mod restore;
pub mod selinuxfs;
pub mod store;
pub mod transaction;
pub mod transition;
pub mod undo;
mod undo_label;
pub mod watch;
pub mod window;

pub use choice::{Ask, Choice, unopened};
pub use context::{Category, CategoryPair, CategorySet, Context, ContextError, Level, Range};
pub use exec_label::{Attribute, Labelling, ProcError, VerifiedProc};
pub use families::{Chosen, ProfileName, choose};
pub use in_use::{Found, Holder, InUse, Sources};
pub use journal::{Intent, Journal, JournalError};
pub use ledger::{DEFAULT_UIDS, Lease, LeaseKey, Ledger, LedgerError, Readopted, UidRange};
pub use mode::{SelinuxFacts, SelinuxMode, probe};
pub use owner::Owner;
pub use processes::others_in_reach;
pub use profile::Profile;
pub use relabel::{Held, LabelClass, Outcome, RelabelError, Relabeler, Restored};
pub use transaction::Transaction;
pub use undo::{Change, UndoOutcome, UndoReport, Undoer, foresee_labels, undo_labels};
pub use window::Window;

#[cfg(test)]
mod torture_tests;
