//! `seal`, `chain`, `key`: the host signs evidence. The jailer alone has the key; what it signs is our predicate, with a
//! position in the host's chain that it gives itself.

mod vault;

use std::io::Read;

use casemate_evidence::{Envelope, Evidence, Link, MAX_EVIDENCE, PublicKey, Record, Seal, Statement, canonical};
use casemate_label::{owner, record};
use casemate_plan::HostConfig;
use casemate_spec::SandboxId;
use casemate_wire::record::Phase;
use serde::Serialize;

use crate::clock;
use crate::error::StepFailed;
use vault::Vault;

const STAGE: &str = "seal evidence";
/// Evidence is sealed when it was gathered, and not again later, in seconds.
const FRESH: u64 = 900;

/// A sealed bundle, and its record in the chain.
#[derive(Debug, Serialize)]
pub struct Sealed {
    envelope: Envelope,
    record: Record,
}

#[derive(Debug, Serialize)]
pub struct HostKey {
    keyid: String,
    public_key: PublicKey,
}

/// The chain's file, as it is.
#[derive(Debug, Serialize)]
pub struct Exported {
    chain: String,
}

/// Seals what stands on standard input.
pub fn seal(config: &HostConfig) -> Result<Sealed, StepFailed> {
    let mut bytes = Vec::new();
    let most = MAX_EVIDENCE as u64 + 1;
    std::io::stdin().lock().take(most).read_to_end(&mut bytes).map_err(|e| StepFailed::stage(STAGE, e))?;
    if bytes.len() > MAX_EVIDENCE {
        return Err(StepFailed::because(STAGE, format!("it is larger than {MAX_EVIDENCE} bytes")));
    }
    let evidence: Evidence = canonical::parse("the evidence", &bytes).map_err(|e| StepFailed::stage(STAGE, e))?;
    let boot = owner::boot_id().map_err(|e| StepFailed::stage(STAGE, e))?;
    check(&evidence, clock::now(), &boot).map_err(|why| StepFailed::because(STAGE, why))?;
    let host = record::host_id(&config.state_dir).map_err(|e| StepFailed::stage("read the host's id", e))?;
    Vault::open(&config.state_dir)?.append(|position, key| {
        let seal = Seal {
            sequence: position.sequence,
            previous: position.previous,
            time: clock::now(),
            boot_id: boot,
            host,
            signer: key.public(),
        };
        let link = Link {
            sequence: seal.sequence,
            previous: seal.previous.clone(),
            time: seal.time,
            boot_id: seal.boot_id.clone(),
            sandbox: evidence.sandbox.clone(),
            payload: seal.previous.clone(),
        };
        let (envelope, payload) = Envelope::seal(&Statement::new(seal, evidence), key)?;
        let record = Record::sign(Link { payload, ..link }, key)?;
        Ok((Sealed { envelope, record: record.clone() }, record))
    })
}

/// What only this host, now, can say of evidence.
fn check(evidence: &Evidence, now: u64, boot: &str) -> Result<(), String> {
    evidence.check().map_err(|e| e.to_string())?;
    SandboxId::parse(&evidence.sandbox).map_err(|e| format!("its sandbox: {e}"))?;
    if evidence.time.abs_diff(now) > FRESH {
        return Err(format!("it was gathered {} s ago; gather it anew", now.saturating_sub(evidence.time)));
    }
    if evidence.record.phase != Phase::Stopped && evidence.record.boot_id != boot {
        return Err("it shows a sandbox of another boot as living".into());
    }
    Ok(())
}

/// The public key; made at the first use.
pub fn key(config: &HostConfig) -> Result<HostKey, StepFailed> {
    let public_key = Vault::open(&config.state_dir)?.key()?.public();
    Ok(HostKey { keyid: public_key.id().to_string(), public_key })
}

/// The whole chain, for export.
pub fn chain(config: &HostConfig) -> Result<Exported, StepFailed> {
    Ok(Exported { chain: Vault::open(&config.state_dir)?.export()? })
}
