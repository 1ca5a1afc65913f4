//! One file per group of verbs.

pub mod audit;
pub mod checks;
pub mod cp;
pub mod docs;
pub mod doctor;
pub mod evidence;
pub mod exec;
pub mod findings;
pub mod foreground;
pub mod inspect;
pub mod kernel;
pub mod labels;
pub mod life;
pub mod logs;
pub mod matrix;
pub mod plan;
pub mod policy;
pub mod ps;
pub mod repair;
pub mod run;
pub mod why;
