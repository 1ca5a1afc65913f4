//! `audit policy`: what a policy allows a VM, asked of the policy itself.

mod summary;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use casemate_audit::policy::ask;
use casemate_audit::policy::constraint::Level;
use casemate_audit::policy::diff::diff;
use casemate_audit::policy::separation;
use casemate_audit::policy::vm::{Family, Types, Vm, families};
use casemate_audit::{Policy, PolicyError};
use casemate_client::sanitize;
use serde_json::{Value, json};

use crate::args::Format;
use crate::audit_args::{AuditPolicyArgs, Question};
use crate::failure::{Failure, Result};
use crate::output::{Context, Tone, cell, paint, table_text};

/// Exit status of an update that opens something, and of a policy that does not hold VMs apart.
const FOUND: u8 = 1;

pub fn policy(context: &Context, args: &AuditPolicyArgs) -> Result<u8> {
    if args.question != Question::Check && (args.output.profile.is_some() || args.output.output.is_some()) {
        return Err(Failure::new("--profile and --output go with the question `check` only"));
    }
    if args.question != Question::Check && !matches!(context.format, Format::Text | Format::Json) {
        return Err(Failure::new("--format junit, sarif and html go with the question `check` only"));
    }
    if let Some([old, new]) = args.diff.as_deref() {
        return update(context, args, old, new);
    }
    let policy = match &args.file {
        Some(file) => Policy::read(file),
        None => Policy::live(),
    };
    let policy = policy.map_err(failure)?;
    let asked = Asked::new(&policy, args)?;
    match args.question {
        Question::Summary => asked.summary(context),
        Question::Reach => asked.reach(context),
        Question::Rights => asked.rights(context),
        Question::Who => asked.who(context),
        Question::Entries => asked.entries(context),
        Question::Constrained => asked.constrained(context),
        Question::Flows => asked.flows(context),
        Question::Booleans => asked.booleans(context),
        Question::Check => asked.check(context, args),
    }
}

/// Whose VMs: the family that is named, or the first that all these policies have, with the types that were given.
fn family(policies: &[&Policy], args: &AuditPolicyArgs) -> Result<Family> {
    let types =
        Types { runner: args.runner.as_deref(), image: args.image.as_deref(), content: args.content.as_deref() };
    let mut family = match &args.family {
        // Where all types are given, none of the families need be there.
        None if args.runner.is_some() && args.image.is_some() && args.content.is_some() => Ok(families()[0].clone()),
        None => Family::common(policies),
        named => policies.first().map_or_else(|| Family::common(&[]), |first| Family::find(first, named.as_deref())),
    };
    for policy in policies {
        family = family.and_then(|family| family.with(policy, &types));
    }
    family.map_err(failure)
}

fn failure(error: PolicyError) -> Failure {
    Failure::from_error(&error)
}

/// A question to one policy, about two VMs of one family.
struct Asked<'a> {
    policy: &'a Policy,
    family: Family,
    a: Vm,
    b: Vm,
    class: Option<&'a str>,
}

impl<'a> Asked<'a> {
    fn new(policy: &'a Policy, args: &'a AuditPolicyArgs) -> Result<Self> {
        for (option, level) in [("--from", &args.from), ("--to", &args.to)] {
            if Level::parse(level).is_none() {
                let message = format!("{option} {}: not a level", sanitize::line(level, 80));
                return Err(Failure::new(message).remedy("write one level, as s0:c1,c2"));
            }
        }
        let family = family(&[policy], args)?;
        let a = family.at(policy, &args.from).map_err(failure)?;
        let b = family.at(policy, &args.to).map_err(failure)?;
        for vm in [&a, &b] {
            if !policy.knows_context(&vm.image) {
                return Err(failure(PolicyError::Context(vm.image.clone())));
            }
        }
        if let Some(class) = args.class.as_deref().filter(|c| !policy.facts().classes.contains_key(*c)) {
            return Err(failure(PolicyError::Unknown(format!("the class {}", sanitize::line(class, 80)))));
        }
        Ok(Self { policy, family, a, b, class: args.class.as_deref() })
    }

    fn wanted(&self, class: &str) -> bool {
        self.class.is_none_or(|only| only == class)
    }

    /// JSON with its subject beside the rows, or a table with a line above it.
    fn tell(&self, context: &Context, rows: Value, title: &str, head: &[&str], cells: Vec<Vec<String>>) -> Result<u8> {
        if context.json() {
            let subject = json!({ "policy": self.policy.origin(), "version": self.policy.version(),
                "family": self.family, "from": self.a, "to": self.b, "rows": rows });
            context.print_json(&subject)?;
            return Ok(0);
        }
        let mut out = format!("{}\n", sanitize::line(title, 2000));
        if cells.is_empty() {
            out.push_str("none\n");
        } else {
            let mut table = context.table(head);
            for row in cells {
                table.add_row(row.iter().map(|text| cell(sanitize::line(text, 2000), Tone::Plain)));
            }
            out.push_str(&table_text(&table));
        }
        context.print(&out)?;
        Ok(0)
    }

    fn reach(&self, context: &Context) -> Result<u8> {
        let mut rows = ask::reach(self.policy, &self.a, &self.b).map_err(failure)?;
        rows.retain(|row| self.wanted(&row.class));
        let cells = rows
            .iter()
            .map(|row| vec![row.object.into(), row.class.clone(), list(&row.to_other), list(&row.to_own)])
            .collect();
        let title = format!("{} may, of another VM's objects ({}):", self.a.runner, level(&self.b.image));
        self.tell(context, json!(rows), &title, &["OBJECT", "CLASS", "OF ANOTHER VM", "OF ITS OWN"], cells)
    }

    fn rights(&self, context: &Context) -> Result<u8> {
        let rights = ask::rights(self.policy, &self.family, &self.a).map_err(failure)?;
        let rows: Vec<_> = rights.into_iter().filter(|((_, class), _)| self.wanted(class)).collect();
        let json: Vec<_> = rows
            .iter()
            .map(|((type_, class), may)| json!({ "type": type_, "class": class, "permissions": may }))
            .collect();
        let mut alike: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for ((type_, class), may) in &rows {
            alike.entry((class, may)).or_default().push(type_.clone());
        }
        let cells =
            alike.into_iter().map(|((class, may), types)| vec![class.clone(), list(may), few(&types)]).collect();
        let title = format!("{} may, of objects without categories:", self.a.runner);
        self.tell(context, json!(json), &title, &["CLASS", "PERMISSIONS", "TYPES"], cells)
    }

    fn who(&self, context: &Context) -> Result<u8> {
        let mut rows = ask::who(self.policy, &self.family, &self.a).map_err(failure)?;
        rows.retain(|row| self.wanted(&row.class));
        let cells = rows
            .iter()
            .map(|row| {
                let needs = if row.without_categories { "no categories" } else { "categories" };
                vec![row.domain.clone(), row.object.into(), row.class.clone(), list(&row.permissions), needs.into()]
            })
            .collect();
        let title = format!("domains that may touch {} or {}:", self.a.runner, self.a.image);
        self.tell(context, json!(rows), &title, &["DOMAIN", "OBJECT", "CLASS", "MAY", "NEEDS"], cells)
    }

    fn entries(&self, context: &Context) -> Result<u8> {
        let rows = ask::entries(self.policy, &self.a, &self.family).map_err(failure)?;
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        let cells = rows
            .iter()
            .map(|row| {
                let how = if row.default { "by itself" } else { "asked for (attr/exec)" };
                let special = [yes(row.under_no_new_privs), yes(row.from_nosuid)];
                let [nnp, nosuid] = special;
                vec![row.from.clone(), few(&row.programs), how.into(), nnp, nosuid]
            })
            .collect();
        let title = format!("ways to become {}:", self.family.runner);
        self.tell(context, json!(rows), &title, &["FROM", "BY PROGRAM", "HOW", "UNDER NNP", "FROM NOSUID"], cells)
    }

    fn constrained(&self, context: &Context) -> Result<u8> {
        let mut rows = ask::constrained(self.policy, &self.a, &self.b).map_err(failure)?;
        rows.retain(|row| self.wanted(&row.class));
        let cells = rows
            .iter()
            .map(|row| {
                let open = if row.held.is_empty() && row.unknown.is_empty() { "all".into() } else { list(&row.open) };
                vec![row.class.clone(), list(&row.held), open, list(&row.unknown)]
            })
            .collect();
        let title = format!(
            "what another VM's categories hold back for {}, whatever rules allow; the rest is up to type enforcement:",
            self.family.runner
        );
        self.tell(context, json!(rows), &title, &["CLASS", "HELD BACK", "NOT HELD BACK", "UNDECIDED"], cells)
    }

    fn flows(&self, context: &Context) -> Result<u8> {
        let mut rows = ask::flows(self.policy, &self.family, &self.a, &self.b).map_err(failure)?;
        rows.retain(|row| self.wanted(&row.class));
        let mut alike: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for row in &rows {
            let key = (&row.class, &row.level, &row.written_by, &row.read_by);
            alike.entry(key).or_default().push(row.type_.clone());
        }
        let cells = alike.into_iter().map(|((class, level, written, read), types)| {
            vec![class.clone(), level.clone(), list(written), list(read), few(&types)]
        });
        let cells = cells.collect();
        let title = format!("from a VM at {} to one at {}, through:", level(&self.a.image), level(&self.b.image));
        self.tell(context, json!(rows), &title, &["CLASS", "AT", "THE ONE MAY", "THE OTHER MAY", "TYPES"], cells)
    }

    fn booleans(&self, context: &Context) -> Result<u8> {
        let rows = ask::booleans(self.policy, &self.family, &self.a).map_err(failure)?;
        let cells = rows
            .iter()
            .map(|row| {
                let now = if row.now { "on" } else { "off" };
                vec![row.boolean.clone(), now.into(), some(&row.adds), some(&row.removes)]
            })
            .collect();
        let title = "booleans whose other value changes what a VM may do, or who may touch it:";
        self.tell(context, json!(rows), title, &["BOOLEAN", "NOW", "THE OTHER VALUE ADDS", "AND TAKES AWAY"], cells)
    }

    /// All of it, by the rules.
    fn check(&self, context: &Context, args: &AuditPolicyArgs) -> Result<u8> {
        if self.class.is_some() {
            return Err(Failure::new("--class does not go with the question `check`, which asks every class"));
        }
        let mut subject = separation::subject(self.policy, &self.family, [&args.from, &args.to]).map_err(failure)?;
        subject.file = args.file.as_ref().map(|file| file.display().to_string());
        super::tell(context, &args.output, vec![subject], Some(self.policy))
    }
}

fn update(context: &Context, args: &AuditPolicyArgs, old: &Path, new: &Path) -> Result<u8> {
    let (old, new) = (Policy::read(old).map_err(failure)?, Policy::read(new).map_err(failure)?);
    let family = family(&[&old, &new], args)?;
    let told = diff(&old, &new, &family, [&args.from, &args.to]).map_err(failure)?;
    if context.json() {
        context.print_json(&json!({ "old": old.origin(), "new": new.origin(), "family": family.name,
            "opened": told.opened, "closed": told.closed }))?;
    } else {
        let mut out = String::new();
        for (word, tone, lines) in [("opened", Tone::Bad, &told.opened), ("closed", Tone::Good, &told.closed)] {
            for line in lines {
                let _ = writeln!(out, "{}  {}", paint(word, tone), sanitize::line(line, 400));
            }
        }
        let _ = writeln!(
            out,
            "for VMs of the family {}, {} opens {} and closes {}",
            sanitize::line(&family.name, 80),
            sanitize::line(new.origin(), 200),
            told.opened.len(),
            told.closed.len()
        );
        context.print(&out)?;
    }
    Ok(if told.opened.is_empty() { 0 } else { FOUND })
}

fn level(context: &str) -> &str {
    context.splitn(4, ':').nth(3).unwrap_or_default()
}

fn list(words: &[String]) -> String {
    if words.is_empty() { "-".into() } else { words.join(" ") }
}

/// Names, the first of many.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 12;
    match names.len() {
        0..=SHOWN => list(names),
        many => format!("{} and {} more (--format json)", names[..SHOWN].join(" "), many - SHOWN),
    }
}

/// The first few of many.
fn some(lines: &[String]) -> String {
    const SHOWN: usize = 3;
    match lines.len() {
        0 => "-".into(),
        1..=SHOWN => lines.join("; "),
        many => format!("{}; and {} more (--format json)", lines[..SHOWN].join("; "), many - SHOWN),
    }
}
