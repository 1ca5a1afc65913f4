//! `evidence verify`: on any machine, offline, as anybody.

use std::io::Read;
use std::path::Path;

use casemate_evidence::chain::{self, Chain};
use casemate_evidence::{Bundle, MAX_BUNDLE, PublicKey};
use serde_json::json;

use super::told::Checks;
use super::{consistent, judged, originals};
use crate::evidence_args::VerifyArgs;
use crate::failure::{Failure, Result};
use crate::output::{Context, Tone, paint};

/// Exit status: something does not hold; everything holds, but the bundle names its signer itself.
const FAILS: u8 = 1;
const SELF_ASSERTED: u8 = 5;

pub fn verify(context: &Context, args: &VerifyArgs) -> Result<u8> {
    let key = args.key.as_deref().map(public_key).transpose()?;
    let originals = originals::Originals::read(args)?;
    let mut checks = Checks::default();
    let bundles = opened(args, key, &mut checks)?;
    in_order(args, key, &bundles, &mut checks)?;
    for (name, bundle) in &bundles {
        checks.begin(name);
        asked(args, bundle, &mut checks);
        let predicate = &bundle.statement.predicate;
        consistent::check(predicate, &mut checks);
        judged::check(&predicate.evidence, &originals, &mut checks);
        originals.check(&predicate.evidence, &mut checks);
        beyond(&predicate.evidence, &mut checks);
    }
    let failed = checks.failed();
    let verdict = match (failed, key) {
        (0, Some(key)) => format!("everything that was checked holds, signed by the given key {}", key.id()),
        (0, None) => {
            "everything that was checked holds, but SELF-ASSERTED: whoever made this bundle chose the key; get the \
                      host's key on another way (`casemate evidence key` there) and give it with --key"
                .into()
        }
        (1, _) => "1 check FAILS: this is no evidence".into(),
        (n, _) => format!("{n} checks FAIL: this is no evidence"),
    };
    if context.json() {
        context.print_json(&json!({
            "checks": checks.checks, "failed": failed, "self_asserted": key.is_none(), "verdict": verdict,
        }))?;
    } else {
        let tone = if failed > 0 {
            Tone::Bad
        } else if key.is_none() {
            Tone::Weak
        } else {
            Tone::Good
        };
        context.print(&format!("{}\n{}\n", checks.text(), paint(&verdict, tone)))?;
    }
    Ok(match (failed, key) {
        (0, Some(_)) => 0,
        (0, None) => SELF_ASSERTED,
        _ => FAILS,
    })
}

pub fn read(path: &Path, most: usize) -> Result<Vec<u8>> {
    let failed = |e| Failure::io(format!("reading {}", path.display()), e);
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|f| f.take(most as u64 + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() > most {
        return Err(Failure::new(format!("{} is larger than {most} bytes", path.display())));
    }
    Ok(bytes)
}

fn public_key(path: &Path) -> Result<PublicKey> {
    let text = String::from_utf8_lossy(&read(path, 1 << 16)?).into_owned();
    PublicKey::from_pem(&text).map_err(|e| {
        Failure::new(format!("{}: {e}", path.display()))
            .remedy("`casemate evidence key -o FILE` writes one on the host")
    })
}

/// Those that are whole and signed; what is wrong with the others stands among the checks.
fn opened(args: &VerifyArgs, key: Option<PublicKey>, checks: &mut Checks) -> Result<Vec<(String, Bundle)>> {
    let mut bundles = Vec::new();
    for path in &args.files {
        let name = path.display().to_string();
        checks.begin(&name);
        let what = match key {
            Some(key) => format!("its one spelling, its form, and the signature of the given key {}", key.id()),
            None => "its one spelling, its form, and the signature of the key that it names itself".into(),
        };
        match Bundle::open(&read(path, MAX_BUNDLE)?, key) {
            Ok(bundle) => {
                checks.result(what, Ok::<(), String>(()));
                if key.is_none() {
                    let why = format!("it names {}; without --key anybody can have made it", bundle.signer.id());
                    checks.skip("whose key signed it", why);
                }
                bundles.push((name, bundle));
            }
            Err(refused) => {
                checks.result(what, Err(refused));
                checks.skip("everything else of it", "nothing in it counts");
            }
        }
    }
    Ok(bundles)
}

/// The chain, and the bundles in it.
fn in_order(args: &VerifyArgs, key: Option<PublicKey>, named: &[(String, Bundle)], checks: &mut Checks) -> Result<()> {
    checks.begin("chain");
    let bundles: Vec<Bundle> = named.iter().map(|(_, bundle)| bundle.clone()).collect();
    let signer = key.or_else(|| bundles.first().map(|bundle| bundle.signer));
    let strangers: Vec<String> = named
        .iter()
        .filter(|(_, bundle)| Some(bundle.signer) != signer)
        .map(|(name, bundle)| format!("{name} is signed by {}", bundle.signer.id()))
        .collect();
    if bundles.len() > 1 {
        checks.none("all bundles are of one signer", &strangers);
        let problems: Vec<String> = chain::among(&bundles).iter().map(ToString::to_string).collect();
        checks.none("the bundles among themselves: none missing between them, doubled, replayed or forked", &problems);
    }
    let Some(path) = &args.chain else {
        if let [bundle] = &bundles[..] {
            let sequence = bundle.statement.predicate.seal.sequence;
            let why = format!("it says number {sequence}; a bundle alone tells nothing of the others: give --chain");
            checks.skip("its place in the host's chain", why);
        } else if !bundles.is_empty() {
            checks.skip("records before, after and beside these bundles", "--chain is not given");
        }
        return Ok(());
    };
    match Chain::parse(&read(path, MAX_BUNDLE)?, signer) {
        Err(refused) => checks.result(format!("{}: each record signed", path.display()), Err(refused)),
        Ok(chain) => {
            checks.result(format!("{}: each record signed", path.display()), Ok::<(), String>(()));
            let told = |problems: Vec<chain::Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
            checks.none("its records are all there, in order and linked", &told(chain.problems()));
            checks.none("each bundle is the one of its record", &told(chain.judge(&bundles)));
            let given = |sequence| bundles.iter().any(|b| b.statement.predicate.seal.sequence == sequence);
            let rest = chain.records.iter().filter(|r| !given(r.link.sequence)).count();
            if rest > 0 {
                checks.skip(format!("the bundles of {rest} other records"), "they are not given");
            }
            let ends = chain.records.last().map_or(0, |r| r.link.sequence);
            checks.skip(
                format!("records after number {ends}"),
                "an export says nothing of what came later, or was cut off",
            );
        }
    }
    Ok(())
}

/// What the asker wanted of it: whether it answers this question, and not an older one.
fn asked(args: &VerifyArgs, bundle: &Bundle, checks: &mut Checks) {
    let (seal, evidence) = (&bundle.statement.predicate.seal, &bundle.statement.predicate.evidence);
    match &args.sandbox {
        Some(name) => checks.equal("it is of the sandbox that was asked for", &evidence.sandbox, name),
        None => {
            checks.skip("that it is of the sandbox you mean", format!("it says {}; give --sandbox", evidence.sandbox))
        }
    }
    if let Some(boot) = &args.boot_id {
        checks.equal("it was sealed at the boot that was asked for", &seal.boot_id, boot);
    }
    if let Some(time) = args.not_before {
        checks.holds(
            "it was sealed late enough",
            seal.time >= time,
            format!("at {}, asked for {time} or later", seal.time),
        );
    }
    if let Some(after) = args.after {
        let why = format!("number {}, asked for one after {after}", seal.sequence);
        checks.holds("its number is later", seal.sequence > after, why);
    }
    match (&args.nonce, &evidence.nonce) {
        (Some(_), seen) => checks.equal("it holds the nonce that was asked for", seen, &args.nonce),
        (None, _) if args.boot_id.is_none() && args.not_before.is_none() && args.after.is_none() => {
            let why = format!(
                "sealed at {} (seconds since the epoch), boot {}; give --nonce, --not-before, --after or --boot-id",
                seal.time, seal.boot_id
            );
            checks.skip("that it is no older bundle shown again", why);
        }
        _ => {}
    }
}

/// What no verification can tell.
fn beyond(evidence: &casemate_evidence::Evidence, checks: &mut Checks) {
    let why = "root of the host at that time can sign anything: the signature says who answers for it, not that the host \
               was honest";
    checks.skip("that the host told the truth", why);
    let missing = [
        ("the specification", evidence.spec.why()),
        ("plan and facts", evidence.start.why()),
        ("an attestation when the evidence was gathered", evidence.attested.why()),
        ("the installed filters", evidence.filters.why()),
        ("the SELinux policy", evidence.policy.why()),
        ("the audit", evidence.audit.why()),
    ];
    for (what, why) in missing.into_iter().filter_map(|(what, why)| Some((what, why?))) {
        checks.skip(format!("{what}, which the bundle lacks"), why);
    }
}
