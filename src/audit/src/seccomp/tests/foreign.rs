//! Filters of other programs: rules with masks whose conditions overlap, as libseccomp's users write them, and lists of
//! what is denied.

use proptest::prelude::*;

use super::interpreter::{holds, run_stack};
use super::*;

/// `argument & mask == value`, both halves compared only if the mask has bits in the upper one.
type Condition = (u8, u64, u64);

/// A program that allows a call under any of the rules, each a conjunction.
fn any_of(call: u32, rules: &[Vec<Condition>]) -> Program {
    let mut program = careful();
    let mut body = Vec::new();
    for rule in rules {
        let mut tests = Vec::new();
        for (arg, mask, value) in rule {
            for (offset, mask, value) in [
                (high(u32::from(*arg)), mask >> 32, value >> 32),
                (low(u32::from(*arg)), *mask & 0xffff_ffff, *value & 0xffff_ffff),
            ] {
                if mask != 0 {
                    tests.push([load(offset), op(0x54, mask as u32), jeq(value as u32, 0, 0)]);
                }
            }
        }
        let len = 3 * tests.len() as u8 + 1;
        for (at, mut test) in tests.into_iter().enumerate() {
            test[2].jf = len - 3 * at as u8 - 3;
            body.extend(test);
        }
        body.push(ret(ALLOW));
    }
    program.extend([jeq(call, 1, 0), ret(TRAP)]);
    program.extend(body);
    program.push(ret(TRAP));
    program
}

const TRAP: u32 = 0x0003_0000;
const LOWER: u64 = 0xffff_ffff;

fn when(call_name: &str, rules: &[Vec<Condition>]) -> Vec<String> {
    let verdicts = judge(&[any_of(nr(call_name), rules)]);
    call(&verdicts, Abi::X86_64, call_name).unwrap().when.clone()
}

#[test]
fn rules_that_overlap_read_as_they_were_written() {
    let no_exec = (2, 4, 0);
    let flags = |flags| (3, LOWER, flags);
    // Private memory that is not executable; and one kind more for what is read and written.
    let told =
        when("mmap", &[vec![no_exec, flags(0x22)], vec![no_exec, flags(0x4022)], vec![(2, LOWER, 3), flags(0x11)]]);
    let flags_told = "{0x22 (MAP_PRIVATE|MAP_ANONYMOUS), 0x4022 (MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE)}";
    assert_eq!(
        told,
        [
            format!("arg2 & 0x4 == 0x0 (no PROT_EXEC) && u32(arg3) in {flags_told}"),
            "u32(arg2) == 0x3 (PROT_READ|PROT_WRITE) && u32(arg3) == 0x11 (MAP_SHARED|MAP_FIXED)".into(),
        ]
    );
    // A rule that another one covers is not told.
    assert_eq!(when("mmap", &[vec![no_exec], vec![no_exec, flags(0x22)]]), ["arg2 & 0x4 == 0x0 (no PROT_EXEC)"]);
    // One of two bits: none of them is told as what is left of the other.
    assert_eq!(when("dup3", &[vec![(2, 1, 1)], vec![(2, 2, 2)]]), ["arg2 & 0x3 != 0x0"]);
    assert_eq!(when("dup3", &[vec![(2, 3, 3)], vec![(2, 6, 6)]]), ["arg2 & 0x3 == 0x3", "arg2 & 0x6 == 0x6"]);
}

#[test]
fn values_have_their_names_although_a_mask_would_be_shorter() {
    let operations = |all: &[u64]| all.iter().map(|operation| vec![(1, LOWER, *operation)]).collect::<Vec<_>>();
    assert_eq!(
        when("futex", &operations(&[0, 1, 128, 129])),
        [
            "u32(arg1) == 0x0 (FUTEX_WAIT)",
            "u32(arg1) == 0x1 (FUTEX_WAKE)",
            "u32(arg1) == 0x80 (FUTEX_WAIT_PRIVATE)",
            "u32(arg1) == 0x81 (FUTEX_WAKE_PRIVATE)"
        ]
    );
    let tap = when("ioctl", &operations(&[0x4004_54d0, 0x4004_54d8]));
    assert_eq!(tap, ["u32(arg1) == 0x400454d0 (TUNSETOFFLOAD)", "u32(arg1) == 0x400454d8 (TUNSETVNETHDRSZ)"]);
    let stream = vec![vec![(0, LOWER, 1), (1, LOWER, 0x8_0001)]];
    assert_eq!(
        when("socket", &stream),
        ["u32(arg0) == 0x1 (AF_UNIX) && u32(arg1) == 0x80001 (SOCK_STREAM|SOCK_CLOEXEC)"]
    );
    // A bit without a name leaves the whole without one.
    assert_eq!(when("mmap", &[vec![(3, LOWER, 0x8000_0022)]]), ["u32(arg3) == 0x80000022"]);
    assert_eq!(when("clone", &[vec![(0, 0x83, 0x2)]]), ["arg0 & 0x83 == 0x2"], "a part of the signal has no name");
}

fn condition() -> impl Strategy<Value = Condition> {
    let masks = prop::sample::select(vec![1u64, 3, 4, 6, 0xf0, LOWER, LOWER, u64::MAX, 1 << 32 | 4, 0xffff_fff7]);
    (0u8..3, masks, 0u64..8).prop_map(|(arg, mask, value)| (arg, mask, value & mask))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is told holds for exactly those arguments that the rules allow.
    #[test]
    fn conditions_of_overlapping_rules_are_exact(
        rules in prop::collection::vec(prop::collection::vec(condition(), 1..4), 1..6),
        words in prop::collection::vec(prop::array::uniform3(prop_oneof![8 => 0u64..9, 1 => Just(1 << 32), 1 => any::<u64>()]), 60),
    ) {
        let told = judge(&[any_of(nr("dup3"), &rules)]);
        let told = call(&told, Abi::X86_64, "dup3").map(|call| call.when.clone());
        for words in words {
            let mut input = Input { nr: nr("dup3"), arch: X86_64, ..Input::default() };
            input.args[..3].copy_from_slice(&words);
            let meant = rules.iter().any(|rule| rule.iter().all(|(arg, mask, value)| words[usize::from(*arg)] & mask == *value));
            prop_assert_eq!(run_stack(&[any_of(nr("dup3"), &rules)], &input).passes(), meant);
            let holds = told.as_ref().is_some_and(|when| when.is_empty() || when.iter().any(|when| holds(when, &input)));
            prop_assert_eq!(holds, meant, "{:?} {:x?}", told, words);
        }
    }
}

/// Denies some calls in several ways, and lets all others through.
fn denying() -> Program {
    let mut program = vec![load(ARCH), jeq(X86_64, 1, 0), ret(0), load(NR), branch(0x35, 0x4000_0000, 0, 1), ret(0)];
    for (name, answer) in [("fork", ERRNO | 1), ("vfork", ERRNO | 1), ("mount", KILL), ("setns", 0)] {
        program.extend([jeq(nr(name), 0, 1), ret(answer)]);
    }
    program.extend([
        jeq(nr("clone"), 0, 4),
        load(low(0)),
        op(0x54, 0x1_0000),
        jeq(0, 0, 1),
        ret(ERRNO | 1),
        ret(ALLOW),
    ]);
    program
}

#[test]
fn a_list_of_what_is_denied_names_it_first() {
    let verdicts = judge(&[denying()]);
    let text = render(&verdicts);
    let denied = "named calls allowed; any number that is not named here: allow\n  EPERM:\n    fork, vfork\n  kill process:\n    \
                  mount\n  kill thread:\n    setns, 0x80000000 to 0xffffffff\n";
    let (before, _) = text.split_once("  allowed whatever the arguments (").unwrap();
    assert!(before.ends_with(denied), "{before}");
    assert!(
        text.contains("    56 clone, otherwise EPERM\n         if arg0 & 0x10000 == 0x10000 (CLONE_THREAD)\n"),
        "{text}"
    );
    assert!(
        text.ends_with("x32: nothing is allowed (kill thread)\ni386: nothing is allowed (kill thread)\n"),
        "{text}"
    );
    // Every name once, in few lines.
    assert!(text.lines().count() < 110 && text.lines().all(|line| line.len() < 200), "{text}");
    let table = &verdicts.tables[0];
    assert_eq!(Outline::of(table).default, [Action::Allow]);
}

#[test]
fn no_filter_is_one_line_an_abi() {
    let text = render(&judge(&[]));
    assert!(
        text.ends_with("x86-64: everything is allowed\nx32: everything is allowed\ni386: everything is allowed\n"),
        "{text}"
    );
}

#[test]
fn what_passes_without_a_name_is_told_by_number() {
    let text = render(&judge(&[list(&[0, 900, 901])]));
    assert!(
        text.contains(
            "x86-64: 1 named call allowed; any other number or argument: kill process\n  allow:\n    900 to 901\n"
        ),
        "{text}"
    );
}

#[test]
fn a_thread_that_is_killed_alone_is_told() {
    let verdicts = judge(&[denying()]);
    let texts = text_of(&verdicts, RemarkId::KillsThreadOnly);
    assert!(texts.contains("setns kill the calling thread only") && texts.contains("(x32, i386) kills"), "{texts}");
    let severities: Vec<_> =
        verdicts.remarks.iter().filter(|r| r.id == RemarkId::KillsThreadOnly).map(|r| r.severity).collect();
    assert_eq!(severities, [Severity::Low, Severity::Info]);
    assert!(!has(&judge(&[list(&[0])]), RemarkId::KillsThreadOnly));
}

#[test]
fn calls_that_are_dangerous_for_one_reason_are_told_together() {
    let verdicts = judge(&[list(&[nr("mount"), nr("chroot"), nr("bpf"), nr("socket")])]);
    let texts: Vec<String> = by_reason(&verdicts.remarks).into_iter().map(|remark| remark.text).collect();
    assert!(texts.contains(&"mount, chroot are allowed (x86-64): changes what paths mean".to_owned()), "{texts:?}");
    assert!(texts.contains(&"bpf is allowed (x86-64): loads programs into the kernel".to_owned()), "{texts:?}");
    // A finding has room for all of them.
    let of = verdicts.remarks.iter().filter(|r| [RemarkId::DangerousCall, RemarkId::SocketFamily].contains(&r.id));
    let line = in_one_line(of);
    let start = "allowed on x86-64: mount, chroot (changes what paths mean), bpf (loads programs into the kernel), ";
    assert!(line.starts_with(start) && line.contains("socket AF_VSOCK (reaches"), "{line}");
    let everything = judge(&[denying()]);
    assert!(in_one_line(&everything.remarks).len() < 4000);
    // What is allowed on other ABIs too is not mixed with it.
    let mut open = list(&[nr("msync"), nr("bpf")]);
    open.drain(0..3);
    let both = judge(&[open]);
    let line = in_one_line(both.remarks.iter().filter(|remark| remark.id == RemarkId::DangerousCall));
    assert!(
        line.contains("allowed on x86-64: bpf (loads") && line.contains("allowed on i386: ptrace (reads"),
        "{line}"
    );
}

#[test]
fn a_half_that_the_kernel_drops_is_no_finding() {
    let severity = |name: &str, rules: &[Vec<Condition>]| {
        let verdicts = judge(&[any_of(nr(name), rules)]);
        verdicts.remarks.iter().filter(|r| r.id == RemarkId::UpperHalfUnchecked).map(|r| r.severity).max()
    };
    let command = |command, arg| vec![vec![(1, LOWER, command), (2, LOWER, arg)]];
    assert_eq!(severity("fcntl", &command(2, 1)), Some(Severity::Info), "F_SETFD takes an int");
    assert_eq!(severity("fcntl", &command(6, 1)), Some(Severity::Medium), "F_SETLK takes an address");
    assert_eq!(severity("ioctl", &command(0xae03, 131)), Some(Severity::Medium), "a command's own argument is a long");
    assert_eq!(severity("mmap", &[vec![(2, 4, 0)]]), Some(Severity::Info));
    assert_eq!(severity("munmap", &[vec![(0, LOWER, 0x1000)]]), Some(Severity::Medium));
    assert_eq!(severity("lookup_dcookie", &[vec![(1, LOWER, 0x1000)]]), Some(Severity::Low), "not in our tables");
    assert_eq!(severity("munmap", &[vec![(0, u64::MAX, 0x1000)]]), None);
}
