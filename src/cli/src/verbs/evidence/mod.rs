//! `evidence`: gather, have it sealed by the jailer, export, verify.

mod consistent;
mod files;
mod filters;
mod gather;
mod judged;
mod originals;
mod redact;
mod told;
mod verify;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use casemate_client::jailer::Jailer;
use casemate_evidence::{Envelope, MAX_EVIDENCE, PublicKey, Record, canonical};
use serde::Deserialize;
use serde_json::json;

use crate::evidence_args::{EvidenceArgs, EvidenceCommand, MakeArgs};
use crate::failure::{Failure, Result};
use crate::output::{Context, say, written};

pub fn evidence(context: &Context, args: &EvidenceArgs) -> Result<u8> {
    match &args.command {
        None => make(context, &args.make),
        Some(EvidenceCommand::Key { output }) => key(context, output.as_deref()),
        Some(EvidenceCommand::Chain { output }) => chain(context, output),
        Some(EvidenceCommand::Verify(args)) => verify::verify(context, args),
    }
}

/// What the jailer answers to `seal`.
#[derive(Deserialize)]
struct Sealed {
    envelope: Envelope,
    record: Record,
}

#[derive(Deserialize)]
struct HostKey {
    keyid: String,
    public_key: PublicKey,
}

#[derive(Deserialize)]
struct Exported {
    chain: String,
}

fn answer<T: for<'de> Deserialize<'de>>(json: serde_json::Value) -> Result<T> {
    serde_json::from_value(json).map_err(|e| {
        Failure::new(format!("the jailer's answer is not one that this program knows: {e}"))
            .remedy("install all of Casemate's programs from one build")
    })
}

fn refused(error: casemate_evidence::Refused) -> Failure {
    Failure::from_error(&error)
}

fn make(context: &Context, args: &MakeArgs) -> Result<u8> {
    let (Some(name), Some(output)) = (&args.name, &args.output) else {
        return Err(Failure::new("a sandbox and --output are needed").remedy("see `casemate evidence --help`"));
    };
    // Before anything is sealed: a bundle that cannot be written would be a record without one.
    let mut output = Output::create(output)?;
    match sealed(context, name, args) {
        Ok((file, record)) => {
            output.write(&file)?;
            if !matches!(output, Output::Stdout) {
                let digest = record.link.payload.short();
                say(&format!(
                    "number {} of this host's chain, payload {digest}, {} bytes",
                    record.link.sequence,
                    file.len()
                ));
            }
            Ok(0)
        }
        Err(failure) => {
            output.forget();
            Err(failure)
        }
    }
}

fn sealed(context: &Context, name: &str, args: &MakeArgs) -> Result<(Vec<u8>, Record)> {
    let evidence = gather::gather(context, name, args)?;
    let bytes = canonical::bytes("the evidence", &evidence).map_err(refused)?;
    if bytes.len() > MAX_EVIDENCE {
        let remedy = "leave --with-policy out; the policy's digest is in it anyway";
        return Err(Failure::new(format!("the evidence is larger than {MAX_EVIDENCE} bytes")).remedy(remedy));
    }
    let sealed: Sealed = answer(Jailer::locate(&context.dirs)?.tell(&["seal"], &bytes)?.json)?;
    Ok((sealed.envelope.to_file().map_err(refused)?, sealed.record))
}

fn key(context: &Context, output: Option<&Path>) -> Result<u8> {
    let key: HostKey = answer(Jailer::locate(&context.dirs)?.ask(&["key"], None)?.json)?;
    let pem = key.public_key.to_pem();
    match output {
        Some(path) => {
            Output::create(path)?.write(pem.as_bytes())?;
            say(&format!("key {}", key.keyid));
        }
        None if context.json() => context.print_json(&json!({ "keyid": key.keyid, "public_key": pem }))?,
        None => context.print(&format!("{pem}sha256 {}\n", key.keyid))?,
    }
    Ok(0)
}

fn chain(context: &Context, output: &Path) -> Result<u8> {
    let exported: Exported = answer(Jailer::locate(&context.dirs)?.ask(&["chain"], None)?.json)?;
    Output::create(output)?.write(exported.chain.as_bytes())?;
    Ok(0)
}

/// A file that did not exist before, or standard output.
enum Output {
    Stdout,
    File { file: File, path: std::path::PathBuf },
}

impl Output {
    fn create(path: &Path) -> Result<Output> {
        if path == Path::new("-") {
            return Ok(Output::Stdout);
        }
        // Evidence tells much of a host: its maker decides who else reads it.
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        match file {
            Ok(file) => Ok(Output::File { file, path: path.into() }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let message = format!("{} exists already", path.display());
                Err(Failure::new(message).remedy("evidence overwrites nothing: choose another name"))
            }
            Err(error) => Err(Failure::io(format!("creating {}", path.display()), error)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Output::Stdout => written(std::io::stdout().lock().write_all(bytes)),
            Output::File { file, path } => {
                let wrote = file.write_all(bytes).and_then(|()| file.sync_all());
                wrote.map_err(|e| Failure::io(format!("writing {}", path.display()), e))
            }
        }
    }

    /// Nothing came of it.
    fn forget(self) {
        if let Output::File { path, .. } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}
