//! What the verifier has of its own: files whose digests a bundle names, the specification, the policy.

use std::path::{Path, PathBuf};

use casemate_audit::Policy;
use casemate_evidence::parts::{File, SpecText};
use casemate_evidence::{Digest, Evidence};
use casemate_spec::parse;
use casemate_spec::wire::SpecFile;

use super::told::Checks;
use super::verify::read;
use crate::evidence_args::VerifyArgs;
use crate::failure::{Failure, Result};

pub struct Originals {
    spec: Option<(PathBuf, Vec<u8>)>,
    /// Names in the bundle, and files.
    files: Vec<(String, PathBuf)>,
    policy: Option<(PathBuf, Digest)>,
    pub profile: Option<casemate_audit::profile::Profile>,
}

impl Originals {
    pub fn read(args: &VerifyArgs) -> Result<Originals> {
        let mut files = Vec::new();
        files.extend(args.kernel.iter().map(|path| ("kernel".to_owned(), path.clone())));
        for given in &args.image {
            let Some((name, path)) = given.split_once('=') else {
                return Err(Failure::new(format!("--image {given}: not NAME=FILE"))
                    .remedy("names stand in the bundle: disk.root, initrd, runner"));
            };
            files.push((name.into(), path.into()));
        }
        let with = |path: &PathBuf| -> Result<_> { Ok((path.clone(), read(path, parse::MAX_BYTES)?)) };
        let digested = |path: &PathBuf| -> Result<_> { Ok((path.clone(), digest(path)?)) };
        let spec = args.spec.as_ref().map(with).transpose()?;
        let policy = args.policy.as_ref().map(digested).transpose()?;
        let profile = args.profile.as_ref().map(|path| casemate_audit::profile::Profile::read(path));
        let profile = profile.transpose().map_err(|e| Failure::from_error(&e))?;
        Ok(Originals { spec, files, policy, profile })
    }

    pub fn check(&self, evidence: &Evidence, checks: &mut Checks) {
        self.spec(evidence, checks);
        self.objects(evidence, checks);
    }

    fn objects(&self, evidence: &Evidence, checks: &mut Checks) {
        let all = || evidence.files.iter().chain(&evidence.programs);
        for (name, path) in &self.files {
            let what = format!("{name} is {}", path.display());
            let Some(file) = all().find(|file| file.name == *name) else {
                let names: Vec<&str> = all().map(|file| file.name.as_str()).collect();
                checks.holds(what, false, format!("the bundle has no such file; it has {}", names.join(", ")));
                continue;
            };
            match (file.digest.taken(), digest(path)) {
                (Some(told), Ok(seen)) => checks.equal(what, &seen, told),
                (None, _) => {
                    checks.holds(what, false, format!("not digested: {}", file.digest.why().unwrap_or_default()))
                }
                (_, Err(failure)) => checks.holds(what, false, failure.sentence()),
            }
        }
        let rest: Vec<&str> = all()
            .filter(|file: &&File| {
                file.digest.taken().is_some() && !self.files.iter().any(|(name, _)| *name == file.name)
            })
            .map(|file| file.name.as_str())
            .collect();
        if !rest.is_empty() {
            checks.skip(format!("that {} are what you know", rest.join(", ")), "give --kernel FILE, --image NAME=FILE");
        }
    }

    /// The policy that was loaded, from the verifier or the bundle: only the one of the digest.
    pub fn policy(&self, evidence: &Evidence, checks: &mut Checks) -> Option<Policy> {
        use base64::Engine;
        let told = evidence.policy.taken()?;
        let loaded = told.loaded.taken()?;
        let contained = told.bytes.as_ref().map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        if let Some(Ok(bytes)) = &contained {
            checks.equal("the contained policy has the digest of the loaded one", &Digest::of(bytes), loaded);
        } else if contained.is_some() {
            checks.holds("the contained policy", false, "it is no base64");
        }
        let read = match (&self.policy, contained) {
            (Some((path, digest)), _) => {
                let what = format!("{} is the policy that was loaded", path.display());
                checks.equal(what, digest, loaded);
                (digest == loaded).then(|| Policy::read(path).map_err(|e| e.to_string()))
            }
            (None, Some(Ok(bytes))) => (Digest::of(&bytes) == *loaded).then(|| parsed(&bytes)),
            _ => {
                let why = "give it with --policy, or ask for evidence --with-policy; the bundle has its digest only";
                checks.skip("what the SELinux policy answers", why);
                None
            }
        }?;
        checks.result("the policy can be read", read.as_ref().map(|_| ()).map_err(Clone::clone));
        read.ok()
    }

    fn spec(&self, evidence: &Evidence, checks: &mut Checks) {
        if let Some(told) = evidence.spec.taken() {
            self.said(told, checks);
        }
    }

    fn said(&self, told: &SpecText, checks: &mut Checks) {
        let Some((path, bytes)) = &self.spec else {
            checks.skip("that the specification is the one you asked for", "give --spec FILE");
            return;
        };
        let same = told.salt.as_ref().map(|salt| Digest::salted(salt, bytes)) == told.digest && told.digest.is_some();
        if same {
            let what = format!("{} is what the jailer got, byte for byte", path.display());
            checks.equal(what, &bytes.len(), &told.bytes);
            return;
        }
        let what = format!("{} says what the jailer got", path.display());
        checks.result(what, meant(path, bytes, told));
        let bare: Vec<&str> = told.hidden.iter().filter(|(_, d)| d.is_none()).map(|(name, _)| name.as_str()).collect();
        if !bare.is_empty() {
            let why = "the bundle hides them without a digest; their names alone were compared";
            checks.skip(format!("the values of {} in {}", bare.join(", "), path.display()), why);
        }
    }
}

/// libsepol reads files.
fn parsed(bytes: &[u8]) -> Result<Policy, String> {
    let fd = rustix::fs::memfd_create("casemate-policy", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = std::fs::File::from(fd.map_err(|e| e.to_string())?);
    std::io::Write::write_all(&mut file, bytes).map_err(|e| e.to_string())?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Policy::read(Path::new(&path)).map_err(|e| e.to_string())
}

fn digest(path: &Path) -> Result<Digest> {
    let failed = |e| Failure::io(format!("reading {}", path.display()), e);
    let file = std::fs::File::open(path).map_err(failed)?;
    Digest::of_reader(file).map(|(digest, _)| digest).map_err(failed)
}

/// Field by field: a user's file is not the bytes that the client passed on.
fn meant(path: &Path, bytes: &[u8], told: &SpecText) -> Result<(), String> {
    let text = String::from_utf8_lossy(bytes);
    let mut given: SpecFile = match path.extension().is_some_and(|e| e == "toml") {
        true => parse::toml(&text).map_err(|e| e.to_string())?,
        false => parse::json(bytes).map_err(|e| e.to_string())?,
    };
    let told_file = parse::json(told.text.as_bytes()).map_err(|e| e.to_string())?;
    for (name, digest) in &told.hidden {
        let value = given.env.0.get(name).ok_or(format!("the variable {name} is not in it"))?;
        let seen = told.salt.as_ref().map(|salt| Digest::salted(salt, value.as_bytes()));
        match digest {
            Some(digest) if Some(digest) != seen.as_ref() => {
                return Err(format!("the variable {name} has another value"));
            }
            _ => {}
        }
        given.env.0.insert(name.clone(), casemate_evidence::parts::HIDDEN.into());
    }
    let fields = |file: &SpecFile| -> Result<serde_json::Map<String, serde_json::Value>, String> {
        let value = serde_json::to_value(file).map_err(|e| e.to_string())?;
        value.as_object().cloned().ok_or_else(|| "a specification is no table".to_owned())
    };
    let (given, told) = (fields(&given)?, fields(&told_file)?);
    let other: Vec<&str> = given
        .keys()
        .chain(told.keys())
        .filter(|key| given.get(*key) != told.get(*key))
        .map(String::as_str)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    match other.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "other: {} (the client fills in names and defaults: compare `casemate plan`)",
            other.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::redact;
    use super::super::told::Outcome;
    use super::*;
    use crate::evidence_args::Redact;

    fn outcomes(told: &SpecText, given: &str) -> Vec<Outcome> {
        let spec = Some((PathBuf::from("spec.json"), given.as_bytes().to_vec()));
        let originals = Originals { spec, files: Vec::new(), policy: None, profile: None };
        let mut checks = Checks::default();
        originals.said(told, &mut checks);
        checks.checks.into_iter().map(|told| told.outcome).collect()
    }

    #[test]
    fn a_value_that_is_hidden_without_a_digest_is_not_said_to_be_checked() {
        let with = |token: &str, command: &str| {
            format!(r#"{{ "version":1,"name":"a","env":{{"TOKEN":"{token}"}},"command":["{command}"]}}"#)
        };
        let told = |how| redact::spec(&with("hunter2", "x").replace("{ ", "{"), how, [7; 16]).unwrap();
        let (digest, hide) = (told(Redact::Digest), told(Redact::Hide));
        assert_eq!(outcomes(&digest, &with("hunter2", "x")), [Outcome::Holds]);
        assert!(matches!(outcomes(&digest, &with("other", "x"))[..], [Outcome::Fails(_)]));
        assert!(matches!(outcomes(&hide, &with("other", "x"))[..], [Outcome::Holds, Outcome::NotChecked(_)]));
        assert!(matches!(outcomes(&hide, &with("hunter2", "y"))[..], [Outcome::Fails(_), Outcome::NotChecked(_)]));
    }
}
