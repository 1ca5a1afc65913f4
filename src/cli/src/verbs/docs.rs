//! `completion`, `man`, `version`: generated from the grammar.

use std::path::Path;

use clap::CommandFactory;

use crate::args::Cli;
use crate::failure::{Failure, Result};
use crate::output::{Context, written};

pub fn completion(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "casemate", &mut script);
    written(std::io::Write::write_all(&mut std::io::stdout(), &script))
}

pub fn man(directory: &Path) -> Result<()> {
    let writing = |e| Failure::io(format!("writing manual pages into {}", directory.display()), e);
    std::fs::create_dir_all(directory).map_err(writing)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(writing)
}

pub fn version(context: &Context) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let (spec, record) = (casemate_spec::wire::VERSION, casemate_wire::record::VERSION);
    let agent = casemate_agent_protocol::PROTOCOL_VERSION;
    if context.json() {
        let versions = serde_json::json!({
            "casemate": version, "specification": spec, "record": record, "agent_protocol": agent,
        });
        return context.print_json(&versions);
    }
    context.print(&format!("casemate {version}\nspecification {spec}, record {record}, agent protocol {agent}\n"))
}
