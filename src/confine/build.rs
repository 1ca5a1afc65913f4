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
        for include in std::mem::take(&mut file.include) {
            file.allow.extend(self.merged(&include).allow);
        }
        let mut allow: Vec<Rule> = Vec::new();
        for rule in file.allow {
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
        let mut refusals: Vec<(i64, u32)> = Vec::new();
        for refusal in &file.refuse {
            assert!(
                !file.allow.iter().any(|rule| rule.syscall == refusal.syscall),
                "{name}: {} twice",
                refusal.syscall
            );
            assert!(refusal.why.len() > 4, "{name}: refusing {} gives no reason", refusal.syscall);
            refusals.push((self.syscall_number(&refusal.syscall), errno(&refusal.errno)));
        }
        let marker = file.marker.unwrap_or_else(|| panic!("{name} has no marker"));
        refusals.push((self.syscall_number(MARKER), u32::from(marker)));

        let program = splice(self.compile(&file.allow), &refusals);
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
                let mask = c.mask.as_ref().map_or(u64::MAX, |mask| self.value(mask));
                format!("({}, {mask:#x}, {:#x})", c.arg, self.value(&c.equals))
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
        // An unconditional rule beside conditional ones of the same call would make those dead text.
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

    /// The number of a system call, as seccompiler's table has it: the only comparison in a filter
    /// of one rule.
    fn syscall_number(&self, name: &str) -> i64 {
        let rule = Rule { syscall: name.into(), args: Vec::new(), why: String::new() };
        let program = self.compile(&[rule]);
        let start = after_load(&program);
        i64::from(program.get(start).expect("a comparison").k)
    }
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

/// Puts "this number: errno" checks before the allow rules. BPF jumps are relative and none of
/// seccompiler's crosses this place, so nothing else changes.
fn splice(mut program: BpfProgram, refusals: &[(i64, u32)]) -> BpfProgram {
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ERRNO: u32 = 0x0005_0000;
    let at = after_load(&program);
    let checks = refusals.iter().flat_map(|(number, errno)| {
        let number = u32::try_from(*number).expect("a system call number");
        [
            seccompiler::sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: number },
            seccompiler::sock_filter { code: RETURN, jt: 0, jf: 0, k: ERRNO | errno },
        ]
    });
    program.splice(at..at, checks.collect::<Vec<_>>());
    program
}
