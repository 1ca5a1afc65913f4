//! Compiles `seccomp-filters/*.json` into BPF at build time. seccompiler does the compiling; this
//! script merges base, includes and the architecture's overlay, resolves named constants, and
//! refuses what must never be: an empty filter, a rule without a reason, a forbidden system call.

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What gets installed, and the name of its constant.
const FILTERS: [(&str, &str); 5] = [
    ("jailer.exec", "JAILER_EXEC"),
    ("runner.main", "RUNNER_MAIN"),
    ("runner.vcpu", "RUNNER_VCPU"),
    ("runner.io", "RUNNER_IO"),
    ("warden", "WARDEN"),
];

/// Allowed by no filter that a runner lives under, whatever a file says.
const NEVER: &str = "ptrace process_vm_readv process_vm_writev pidfd_getfd mount umount2 move_mount open_tree fsopen \
    fsconfig fsmount fspick mount_setattr pivot_root chroot unshare setns clone3 fork vfork execve bpf io_uring_setup \
    io_uring_enter io_uring_register userfaultfd perf_event_open keyctl add_key request_key init_module finit_module \
    delete_module kexec_load kexec_file_load open_by_handle_at name_to_handle_at open openat2 creat socket connect bind \
    listen kill tkill rt_sigqueueinfo pidfd_open pidfd_send_signal memfd_create mknod mknodat symlink link rename unlink \
    shmget shmat personality modify_ldt iopl ioperm swapon swapoff reboot settimeofday clock_settime syslog acct \
    quotactl setuid setgid setreuid setregid setfsuid setfsgid vmsplice kcmp";

/// The system call whose errno says which filter answers: unused by anything we run.
const MARKER: &str = "kcmp";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[allow(dead_code, reason = "for the reader of the file")]
    about: String,
    #[serde(default)]
    include: Vec<String>,
    /// Errno that MARKER gets.
    marker: Option<u16>,
    allow: Vec<Rule>,
    #[serde(default)]
    refuse: Vec<Refusal>,
}

#[derive(Deserialize, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
struct Rule {
    syscall: String,
    #[serde(default)]
    args: Vec<Condition>,
    why: String,
}

#[derive(Deserialize, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
struct Condition {
    arg: u8,
    mask: Option<Value>,
    equals: Value,
    width: Option<u8>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Refusal {
    syscall: String,
    errno: String,
    why: String,
}

struct Source {
    dir: PathBuf,
    arch: String,
    constants: BTreeMap<String, u64>,
}

fn main() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let dir = root.join("../../seccomp-filters");
    println!("cargo::rerun-if-changed={}", dir.display());
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo");
    let mut source = Source { dir, arch, constants: BTreeMap::new() };
    for file in [source.dir.join("constants.json"), source.dir.join(&source.arch).join("constants.json")] {
        let read: BTreeMap<String, Value> = parse(&file);
        for (name, value) in read {
            let value = number(&value).unwrap_or_else(|| panic!("{name} in {} is no number", file.display()));
            assert!(source.constants.insert(name.clone(), value).is_none(), "constant {name} is defined twice");
        }
    }
    let mut out = String::new();
    for (name, constant) in FILTERS {
        source.emit(name, constant, &mut out);
    }
    let path = PathBuf::from(std::env::var("OUT_DIR").expect("set by cargo")).join("filters.rs");
    std::fs::write(path, out).expect("write filters.rs");
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => u64::from_str_radix(text.strip_prefix("0x")?, 16).ok(),
        other => other.as_u64(),
    }
}

impl Source {
    /// The file of a filter, its includes and their overlays, merged. A rule that two of them give
    /// counts once, with the first reason; the marker is the file's own.
    fn merged(&self, name: &str) -> File {
        let mut file: File = parse(&self.dir.join(format!("{name}.json")));
        let overlay = self.dir.join(&self.arch).join(format!("{name}.json"));
        if overlay.exists() {
            let overlay: File = parse(&overlay);
            file.allow.extend(overlay.allow);
            file.refuse.extend(overlay.refuse);
        }
        // Includes first: KVM_RUN must be found early among the many ioctl rules of the coarse filter.
        let mut all: Vec<Rule> = Vec::new();
        for include in std::mem::take(&mut file.include) {
            all.extend(self.merged(&include).allow);
        }
        all.extend(std::mem::take(&mut file.allow));
        let mut allow: Vec<Rule> = Vec::new();
        for rule in all {
            assert!(rule.why.len() > 4, "{name}: the rule for {} gives no reason", rule.syscall);
            if !allow.iter().any(|other| (&other.syscall, &other.args) == (&rule.syscall, &rule.args)) {
                allow.push(rule);
            }
        }
        file.allow = allow;
        file
    }

    fn value(&self, value: &Value) -> u64 {
        if let Some(constant) = value.as_str().and_then(|name| self.constants.get(name)) {
            return *constant;
        }
        number(value).unwrap_or_else(|| panic!("{value} is neither a number nor a constant"))
    }

    fn emit(&self, name: &str, constant: &str, out: &mut String) {
        let file = self.merged(name);
        assert!(!file.allow.is_empty(), "{name}: an empty filter protects nothing that runs; it is refused");
        let never: BTreeSet<&str> = if name == "warden" { BTreeSet::new() } else { NEVER.split_whitespace().collect() };
        for rule in &file.allow {
            assert!(!never.contains(rule.syscall.as_str()), "{name}: {} is never allowed", rule.syscall);
        }
        let mut entries: BTreeMap<u32, Entry> = BTreeMap::new();
        for refusal in &file.refuse {
            assert!(
                !file.allow.iter().any(|rule| rule.syscall == refusal.syscall),
                "{name}: {} twice",
                refusal.syscall
            );
            assert!(refusal.why.len() > 4, "{name}: refusing {} gives no reason", refusal.syscall);
            entries.insert(self.syscall_number(&refusal.syscall), Entry::Return(ERRNO | errno(&refusal.errno)));
        }
        let marker = file.marker.unwrap_or_else(|| panic!("{name} has no marker"));
        entries.insert(self.syscall_number(MARKER), Entry::Return(ERRNO | u32::from(marker)));
        for rule in &file.allow {
            let of_call: Vec<Rule> = file.allow.iter().filter(|other| other.syscall == rule.syscall).cloned().collect();
            let bare = of_call.iter().any(|rule| rule.args.is_empty());
            assert!(!bare || of_call.len() == 1, "{name}: {} has rules that another one makes dead", rule.syscall);
            let entry = if bare { Entry::Return(ALLOW) } else { Entry::Check(self.block(&of_call)) };
            entries.insert(self.syscall_number(&rule.syscall), entry);
        }

        let program = assemble(self.prologue(), &entries);
        writeln!(out, "pub(super) static {constant}: [Instruction; {}] = [", program.len()).unwrap();
        for i in &program {
            writeln!(out, "i({:#x},{},{},{:#x}),", i.code, i.jt, i.jf, i.k).unwrap();
        }
        writeln!(out, "];\npub(super) const {constant}_MARKER: i32 = {marker};").unwrap();
        self.emit_rules(constant, &file, out);
    }

    /// The rules as data, for the tests and reports.
    fn emit_rules(&self, constant: &str, file: &File, out: &mut String) {
        writeln!(out, "#[cfg(any(test, feature = \"rules\"))]\npub(super) static {constant}_RULES: &[Rule] = &[")
            .unwrap();
        for rule in &file.allow {
            let number = self.syscall_number(&rule.syscall);
            let conditions = rule.args.iter().map(|c| {
                let width = if c.width == Some(64) { u64::MAX } else { u64::from(u32::MAX) };
                let mask = c.mask.as_ref().map_or(width, |mask| self.value(mask) & width);
                let constant = c.equals.as_str().filter(|name| self.constants.contains_key(*name));
                format!(
                    "Condition {{ arg: {}, mask: {mask:#x}, value: {:#x}, constant: {constant:?} }}",
                    c.arg,
                    self.value(&c.equals)
                )
            });
            let conditions: Vec<_> = conditions.collect();
            let (syscall, why) = (&rule.syscall, &rule.why);
            writeln!(
                out,
                "Rule {{ syscall: {syscall:?}, number: {number}, conditions: &[{}], refused: None, why: {why:?} }},",
                conditions.join(", ")
            )
            .unwrap();
        }
        for Refusal { syscall, errno: name, why } in &file.refuse {
            let (number, errno) = (self.syscall_number(syscall), errno(name));
            writeln!(
                out,
                "Rule {{ syscall: {syscall:?}, number: {number}, conditions: &[], refused: Some({errno}), why: {why:?} }},"
            )
            .unwrap();
        }
        writeln!(out, "];").unwrap();
    }

    fn compile(&self, rules: &[Rule]) -> BpfProgram {
        let rules: Vec<Value> = rules
            .iter()
            .map(|rule| {
                let args: Vec<Value> = rule.args.iter().map(|c| self.condition(c)).collect();
                if args.is_empty() {
                    json!({ "syscall": rule.syscall })
                } else {
                    json!({ "syscall": rule.syscall, "args": args })
                }
            })
            .collect();
        let text = json!({ "f": { "mismatch_action": "kill_process", "match_action": "allow", "filter": rules } });
        let arch: TargetArch = self.arch.as_str().try_into().expect("a supported architecture");
        let mut map = compile_from_json(text.to_string().as_bytes(), arch)
            .unwrap_or_else(|error| panic!("seccompiler refuses a filter: {error}\n{text}"));
        map.remove("f").expect("the filter just compiled")
    }

    fn condition(&self, c: &Condition) -> Value {
        let width = match c.width.unwrap_or(32) {
            32 => "dword",
            64 => "qword",
            other => panic!("width {other}: 32 or 64"),
        };
        let op = c.mask.as_ref().map_or(json!("eq"), |mask| json!({ "masked_eq": self.value(mask) }));
        json!({ "index": c.arg, "type": width, "op": op, "val": self.value(&c.equals) })
    }

    /// Architecture check and `ld [nr]`, as seccompiler begins every filter.
    fn prologue(&self) -> BpfProgram {
        let mut program = self.compile(&[bare("read")]);
        program.truncate(after_load(&program));
        program
    }

    /// The checks of one system call's rules: ends in ALLOW or KILL, jumps nowhere outside itself.
    fn block(&self, rules: &[Rule]) -> BpfProgram {
        let mut program = self.compile(rules);
        let start = after_load(&program);
        program.drain(..start);
        program
    }

    /// The number of a system call, as seccompiler's table has it: the only comparison in a filter
    /// of one rule.
    fn syscall_number(&self, name: &str) -> u32 {
        self.block(&[bare(name)]).first().expect("a comparison").k
    }
}

fn bare(syscall: &str) -> Rule {
    Rule { syscall: syscall.into(), args: Vec::new(), why: String::new() }
}

fn errno(name: &str) -> u32 {
    match name {
        "EPERM" => 1,
        "ENOENT" => 2,
        "EACCES" => 13,
        "ENOSYS" => 38,
        other => panic!("errno {other} is not in the table of build.rs"),
    }
}

/// The place after `ld [nr]`, which follows the architecture check.
fn after_load(program: &BpfProgram) -> usize {
    const LOAD_WORD: u16 = 0x20;
    let load = program.iter().position(|i| i.code == LOAD_WORD && i.k == 0);
    load.expect("every filter loads the number") + 1
}

const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// What a system call number leads to.
enum Entry {
    Return(u32),
    Check(BpfProgram),
}

/// Prologue, a binary search over the numbers, and the argument checks behind it. seccompiler's own
/// chain is linear; the kernel runs a new filter once for every number there is, so a chain of 110
/// costs a start 0.4 ms, the search a fraction (step-costs measures it).
fn assemble(prologue: BpfProgram, entries: &BTreeMap<u32, Entry>) -> BpfProgram {
    let numbers: Vec<u32> = entries.keys().copied().collect();
    let search = search(&numbers);
    // Each leaf is [jeq number][act][kill]; `act` is filled in here, now that places are known.
    let mut program = prologue;
    let base = program.len();
    let mut blocks = BpfProgram::new();
    for (at, step) in search.iter().enumerate() {
        program.push(match step {
            Step::Fixed(code, jt, jf, k) => instruction(*code, *jt, *jf, *k),
            Step::Act(number) => match &entries[number] {
                Entry::Return(value) => instruction(RETURN, 0, 0, *value),
                Entry::Check(block) => {
                    let target = base + search.len() + blocks.len();
                    blocks.extend_from_slice(block);
                    let distance = target - (base + at + 1);
                    instruction(JUMP, 0, 0, u32::try_from(distance).expect("a short filter"))
                }
            },
        });
    }
    program.extend(blocks);
    assert!(program.len() <= 4096, "the filter has {} instructions, the kernel takes 4096", program.len());
    program
}

enum Step {
    Fixed(u16, u8, u8, u32),
    Act(u32),
}

fn search(numbers: &[u32]) -> Vec<Step> {
    if let [number] = numbers {
        let last = Step::Fixed(RETURN, 0, 0, KILL_PROCESS);
        return vec![Step::Fixed(JUMP_IF_EQUAL, 0, 1, *number), Step::Act(*number), last];
    }
    let (low, high) = numbers.split_at(numbers.len() / 2);
    let (left, right) = (search(low), search(high));
    let mut steps = Vec::new();
    match u8::try_from(left.len()) {
        Ok(over) => steps.push(Step::Fixed(JUMP_IF_AT_LEAST, over, 0, high[0])),
        Err(_) => {
            let over = u32::try_from(left.len()).expect("a short filter");
            steps.extend([Step::Fixed(JUMP_IF_AT_LEAST, 0, 1, high[0]), Step::Fixed(JUMP, 0, 0, over)]);
        }
    }
    steps.extend(left);
    steps.extend(right);
    steps
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> seccompiler::sock_filter {
    seccompiler::sock_filter { code, jt, jf, k }
}
