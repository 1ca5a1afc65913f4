//! Who is kept from whom by what: every ordered pair of VMs, each layer judged alone.
//!
//! A layer holds alone if a runner that its guest has taken over could not reach the other's process, memory, files or
//! sockets were there no other layer. What a VM is as one who acts, and how two VMs relate, are each brought down to a few
//! classes first; a pair then costs some comparisons of numbers and short lists, and equal answers are kept once.

mod layers;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::separation::high;
use crate::crowd::level_of;
use crate::policy::constraint::Level;
use crate::report::{Cell, Matrix, Pair};
use crate::rule::Verdict;
use crate::subject::{CgroupOf, Fd, Kind, Process, Subject};

type Answer = (Verdict, String);

/// Namespaces that lead to another VM's processes, files, sockets or shared memory, if they are shared.
const APART: [&str; 4] = ["ipc", "mnt", "net", "pid"];
/// What a VM is, for comparisons.
struct Side<'a> {
    name: &'a str,
    uids: BTreeSet<u32>,
    level: Option<Level>,
    namespaces: Vec<Option<&'a str>>,
    cgroups: Option<BTreeSet<&'a str>>,
    fds_seen: bool,
    /// Answers that do not depend on the other; equal ones have equal numbers.
    own: usize,
}

/// How two VMs stand to each other; the key of a cell together with who acts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Relation {
    own: usize,
    same_uid: Option<bool>,
    dominates: Option<bool>,
    shared_namespaces: Vec<&'static str>,
    same_cgroup: Option<String>,
    /// Layers of which one of the two could not be looked at.
    unknown: Vec<&'static str>,
    object: Option<String>,
}

/// The matrix of all VMs among the subjects whose runner was looked at.
pub fn of(subjects: &[Subject]) -> Matrix {
    let vms: Vec<(&Subject, &Process)> =
        subjects.iter().filter_map(|subject| Some((subject, runner(subject)?))).collect();
    if vms.len() < 2 {
        return Matrix::default();
    }
    let mut answers: Vec<BTreeMap<&'static str, Answer>> = Vec::new();
    let sides: Vec<Side<'_>> = vms.iter().map(|(subject, runner)| side(subject, runner, &mut answers)).collect();
    let objects = shared_objects(&vms);
    let mut cells: Vec<Cell> = Vec::new();
    let mut known: HashMap<Relation, usize> = HashMap::new();
    let mut all: Vec<Pair> = Vec::new();
    for (from, a) in sides.iter().enumerate() {
        for (to, b) in sides.iter().enumerate().filter(|(to, _)| *to != from) {
            let relation = relation(a, b, objects.get(&(from.min(to), from.max(to))));
            let cell = *known.entry(relation).or_insert_with_key(|relation| {
                cells.push(cell(relation, &answers[relation.own]));
                cells.len() - 1
            });
            all.push(Pair { from, to, cell });
        }
    }
    let mut counts = vec![0usize; cells.len()];
    all.iter().for_each(|pair| counts[pair.cell] += 1);
    let common = (0..cells.len()).max_by_key(|cell| (counts[*cell], usize::MAX - cell)).unwrap_or_default();
    all.retain(|pair| pair.cell != common);
    Matrix { vms: sides.iter().map(|side| side.name.to_owned()).collect(), cells, common, pairs: all }
}

fn runner(subject: &Subject) -> Option<&Process> {
    let is_vm = subject.kind == Kind::Vm;
    subject.processes.iter().find(|process| is_vm && process.role == "runner" && process.pid.is_some())
}

fn side<'a>(subject: &'a Subject, runner: &'a Process, answers: &mut Vec<BTreeMap<&'static str, Answer>>) -> Side<'a> {
    let mine = BTreeMap::from([
        ("uid", layers::capabilities(runner)),
        ("selinux", layers::policy(subject)),
        ("landlock", layers::landlock(runner)),
        ("seccomp", layers::seccomp(runner)),
        ("namespaces", layers::hosts_namespaces(runner)),
        ("cgroup", layers::limits(runner)),
        ("fds", layers::descriptors(runner)),
    ]);
    let own = answers.iter().position(|known| *known == mine).unwrap_or_else(|| {
        answers.push(mine);
        answers.len() - 1
    });
    let threads = runner.threads.seen().into_iter().flatten();
    let namespaces = runner.namespaces.seen();
    Side {
        name: &subject.name,
        uids: threads.flat_map(|thread| thread.uid).collect(),
        level: runner.label.seen().and_then(|label| high(level_of(label.as_deref()?)?)),
        namespaces: APART.iter().map(|name| Some(namespaces?.get(*name)?.id.as_str())).collect(),
        cgroups: runner.cgroups.seen().map(|all| own_cgroups(all)),
        fds_seen: runner.fds.seen().is_some(),
        own,
    }
}

/// Directories that bound its memory or tasks: the deepest ones; those above are everybody's.
fn own_cgroups(all: &[CgroupOf]) -> BTreeSet<&str> {
    let bounds = |cgroup: &&CgroupOf| {
        let mut files = cgroup.limits.iter().filter(|(file, _)| file.starts_with("memory") || file.starts_with("pids"));
        files.any(|(_, value)| super::cgroup::is_limit(value))
    };
    let all: Vec<&str> = all.iter().filter(bounds).map(|cgroup| cgroup.path.as_str()).collect();
    let above = |dir: &str| all.iter().any(|other| other.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')));
    all.iter().copied().filter(|dir| !above(dir)).collect()
}

fn relation(a: &Side<'_>, b: &Side<'_>, object: Option<&String>) -> Relation {
    let pairs = || APART.iter().zip(a.namespaces.iter().zip(&b.namespaces));
    let cgroups = a.cgroups.as_ref().zip(b.cgroups.as_ref());
    let mut unknown = Vec::new();
    if pairs().any(|(_, (a, b))| a.is_none() || b.is_none()) {
        unknown.push("namespaces");
    }
    if cgroups.is_none() {
        unknown.push("cgroup");
    }
    if !(a.fds_seen && b.fds_seen) {
        unknown.push("fds");
    }
    Relation {
        own: a.own,
        same_uid: (!a.uids.is_empty() && !b.uids.is_empty()).then(|| !a.uids.is_disjoint(&b.uids)),
        dominates: a.level.as_ref().zip(b.level.as_ref()).map(|(a, b)| a.dominates(b)),
        shared_namespaces: pairs().filter(|(_, (a, b))| a.is_some() && a == b).map(|(name, _)| *name).collect(),
        same_cgroup: cgroups.and_then(|(a, b)| a.intersection(b).next()).map(|dir| (*dir).to_owned()),
        object: object.cloned(),
        unknown,
    }
}

fn cell(relation: &Relation, own: &BTreeMap<&'static str, Answer>) -> Cell {
    let mut layers: BTreeMap<String, Answer> = own.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    // What the pair itself says stands over what the one who acts says of itself; a failure of either stays.
    let mut judge = |layer: &str, verdict: Verdict, why: String| {
        if let Some(answer) = layers.get_mut(layer).filter(|answer| answer.0 != Verdict::Fail) {
            *answer = (verdict, why);
        }
    };
    for layer in &relation.unknown {
        judge(layer, Verdict::Unknown, format!("the {layer} of one of them could not be read"));
    }
    match relation.same_uid {
        Some(true) => judge("uid", Verdict::Fail, "both have the same uid".into()),
        Some(false) => {}
        None => judge("uid", Verdict::Unknown, "the threads of one of them could not be read".into()),
    }
    match relation.dominates {
        Some(true) => {
            judge("selinux", Verdict::Fail, "its level dominates the other's: categories do not part them".into())
        }
        Some(false) => {}
        None => judge("selinux", Verdict::Unknown, "one of them shows no level".into()),
    }
    if !relation.shared_namespaces.is_empty() {
        judge("namespaces", Verdict::Fail, format!("they share: {}", relation.shared_namespaces.join(", ")));
    }
    if let Some(dir) = &relation.same_cgroup {
        judge("cgroup", Verdict::Fail, format!("both are in {dir}"));
    }
    if let Some(object) = &relation.object {
        judge("fds", Verdict::Fail, object.clone());
    }
    Cell { layers }
}

/// Devices that everybody has and that keep their users apart themselves: null, zero, full, random, urandom, kvm. Told by
/// name: these are planned, and a runner cannot open another in their place.
const EVERYBODYS: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kvm"];

/// By pair, the first object that both have open and that one may write to.
fn shared_objects(vms: &[(&Subject, &Process)]) -> HashMap<(usize, usize), String> {
    let mut holders: HashMap<(u64, u64), Vec<(usize, &Fd)>> = HashMap::new();
    for (at, (_, runner)) in vms.iter().enumerate() {
        for fd in runner.fds.seen().into_iter().flatten().filter(|fd| tells_something(fd)) {
            let Some(object) = fd.object else { continue };
            let all = holders.entry(object).or_default();
            // Its writable opening, if there is one.
            match all.iter_mut().find(|(vm, _)| *vm == at) {
                Some((_, known)) if fd.write => *known = fd,
                Some(_) => {}
                None => all.push((at, fd)),
            }
        }
    }
    let mut shared = HashMap::new();
    for all in holders.values().filter(|all| all.len() > 1 && all.iter().any(|(_, fd)| fd.write)) {
        for (n, (a, one)) in all.iter().enumerate() {
            for (b, other) in all[n + 1..].iter().filter(|(_, other)| one.write || other.write) {
                let fd = if one.write { one } else { other };
                shared
                    .entry((*a.min(b), *a.max(b)))
                    .or_insert_with(|| format!("both have {} open, one to write", fd.target));
            }
        }
    }
    shared
}

fn tells_something(fd: &Fd) -> bool {
    fd.kind != "anon" && !(fd.kind == "chr" && EVERYBODYS.contains(&fd.target.as_str()))
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod tests;
