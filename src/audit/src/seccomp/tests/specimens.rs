//! A specimen for each remark, and the filter beside it that has not earned it.

use casemate_filters::Filter as Ours;

use super::*;

fn ours(filter: Ours) -> Program {
    filter.program().to_vec()
}

/// A filter of ours with calls let through before it is asked.
fn weakened(filter: Ours, calls: &[u32]) -> Program {
    let mut program = vec![load(ARCH), jeq(X86_64, 0, 1 + 2 * calls.len() as u8), load(NR)];
    for call in calls {
        program.extend([jeq(*call, 0, 1), ret(ALLOW)]);
    }
    program.extend(ours(filter));
    program
}

#[test]
fn our_filters_are_known_and_have_no_remark_of_weight() {
    for filter in Ours::ALL {
        let verdicts = judge(&[ours(filter)]);
        let [seen] = &verdicts.filters[..] else { panic!() };
        assert_eq!(seen.known.as_deref(), Some(filter.name()));
        assert_eq!((&seen.claims, seen.differences.len()), (&None, 0));
        let dangerous = [RemarkId::DangerousCall, RemarkId::UpperHalfUnchecked];
        let others: Vec<_> = verdicts.remarks.iter().filter(|remark| !dangerous.contains(&remark.id)).collect();
        assert!(others.is_empty(), "{}: {others:?}", filter.name());
        let mut halves = verdicts.remarks.iter().filter(|remark| remark.id == RemarkId::UpperHalfUnchecked);
        assert!(halves.all(|half| half.severity == Severity::Info), "{}: {:?}", filter.name(), verdicts.remarks);
        for abi in [Abi::X32, Abi::I386] {
            let table = verdicts.tables.iter().find(|table| table.abi == abi).unwrap();
            assert!(table.ranges.iter().all(|range| range.answers == [Action::KillProcess]), "{}", filter.name());
        }
        // Every rule as written is a call that passes, with its reason; every call that passes is written.
        for rule in filter.rules().iter().filter(|rule| rule.refused.is_none()) {
            let call = call(&verdicts, Abi::X86_64, rule.syscall).unwrap_or_else(|| panic!("{}", rule.syscall));
            assert_eq!(call.when.is_empty(), rule.conditions.is_empty(), "{}", rule.syscall);
            assert!(call.why.iter().any(|why| why.ends_with(rule.why)), "{}: {:?}", rule.syscall, call.why);
        }
        let written = |call: &Call| filter.rules().iter().any(|rule| rule.number == i64::from(call.number));
        assert!(verdicts.calls.iter().all(|call| call.abi == Abi::X86_64 && written(call)));
    }
}

#[test]
fn the_same_answers_from_other_instructions_are_the_same_filter() {
    let mut other = vec![load(low(3)), op(0x54, 0xff), op(0x02, 4)];
    other.extend(ours(Ours::RunnerIo));
    let verdicts = judge(std::slice::from_ref(&other));
    assert_eq!(verdicts.filters[0].known.as_deref(), Some("runner.io"));
    assert_ne!(verdicts.filters[0].digest, digest(Ours::RunnerIo.program()));
}

#[test]
fn one_call_more_is_found_out_and_named() {
    let verdicts = judge(&[weakened(Ours::RunnerVcpu, &[nr("ptrace")]), ours(Ours::JailerExec)]);
    let seen = &verdicts.filters[0];
    assert_eq!((seen.known.as_deref(), seen.claims.as_deref()), (None, Some("runner.vcpu")));
    let [difference] = &seen.differences[..] else { panic!("{:?}", seen.differences) };
    assert_eq!((difference.name.as_deref(), difference.input.nr), (Some("ptrace"), 101));
    assert_eq!((difference.ours, difference.theirs), (Action::KillProcess, Action::Allow));
    assert!(text_of(&verdicts, RemarkId::DiffersFromOurs).contains("runner.vcpu"));
    // The coarse filter still holds it.
    assert!(call(&verdicts, Abi::X86_64, "ptrace").is_none());
    let alone = judge(&[weakened(Ours::RunnerVcpu, &[nr("ptrace")])]);
    assert!(text_of(&alone, RemarkId::DangerousCall).contains("ptrace is allowed (x86-64)"));
}

#[test]
fn a_difference_in_one_bit_of_one_argument_is_found() {
    let mut program = ours(Ours::RunnerVcpu);
    let at = program.iter().position(|i| i.code == 0x15 && i.k == 0xae80).unwrap();
    program[at].k = 0xae81;
    let verdicts = judge(std::slice::from_ref(&program));
    let differences = &verdicts.filters[0].differences;
    assert!(!differences.is_empty() && differences.iter().all(|d| d.name.as_deref() == Some("ioctl")));
    assert!(
        differences.iter().any(|d| d.input.args[1] & 0xffff_ffff == 0xae80 || d.input.args[1] & 0xffff_ffff == 0xae81)
    );
    let told = Cache::default().differences(&program, "runner.vcpu").unwrap().unwrap();
    assert_eq!(&told, differences);
    assert_eq!(Cache::default().differences(&ours(Ours::RunnerVcpu), "runner.vcpu").unwrap(), Some(vec![]));
    assert_eq!(Cache::default().differences(&program, "nobody").unwrap(), None);
}

#[test]
fn a_missing_check_of_the_architecture_is_found() {
    let mut program = list(&[nr("msync"), nr("read")]);
    program.drain(0..3);
    let verdicts = judge(&[program]);
    assert!(has(&verdicts, RemarkId::NoAbiCheck));
    // 26 is msync, and i386's ptrace.
    assert!(text_of(&verdicts, RemarkId::I386Open).contains("ptrace"));
    assert!(text_of(&verdicts, RemarkId::DangerousCall).contains("ptrace is allowed (i386)"));
    let careful = judge(&[list(&[nr("msync"), nr("read")])]);
    assert!(!has(&careful, RemarkId::NoAbiCheck) && !has(&careful, RemarkId::I386Open));
    // Another filter of the stack may hold it.
    let mut first = list(&[nr("msync")]);
    first.drain(0..3);
    assert!(!has(&judge(&[first, list(&[nr("msync")])]), RemarkId::NoAbiCheck));
}

/// A list of what is denied, as QEMU's.
fn denying(calls: &[u32], x32: bool) -> Program {
    let mut program = vec![load(ARCH), jeq(X86_64, 1, 0), ret(KILL), load(NR)];
    if x32 {
        program.extend([branch(0x35, 0x4000_0000, 0, 1), ret(KILL)]);
    }
    for call in calls {
        program.extend([jeq(*call, 0, 1), ret(KILL)]);
    }
    program.push(ret(ALLOW));
    program
}

#[test]
fn the_x32_hole_is_found() {
    let verdicts = judge(&[denying(&[nr("ptrace"), nr("mount")], false)]);
    let text = text_of(&verdicts, RemarkId::X32Open);
    assert!(text.contains("ptrace") && text.contains("mount"), "{text}");
    assert!(has(&verdicts, RemarkId::DefaultAllow));
    assert!(call(&verdicts, Abi::X32, "ptrace").is_some() && call(&verdicts, Abi::X86_64, "ptrace").is_none());
    let closed = judge(&[denying(&[nr("ptrace"), nr("mount")], true)]);
    assert!(!has(&closed, RemarkId::X32Open));
    assert!(has(&closed, RemarkId::DefaultAllow));
}

#[test]
fn an_unconditional_ioctl_and_the_terminal_are_found() {
    let verdicts = judge(&[list(&[nr("ioctl")])]);
    assert!(has(&verdicts, RemarkId::UnconditionalIoctl) && has(&verdicts, RemarkId::TerminalInjection));
    let only = |k: u32| {
        let mut program = careful();
        program.extend([jeq(nr("ioctl"), 0, 2), load(low(1)), jeq(k, 1, 0), ret(KILL), ret(ALLOW)]);
        judge(&[program])
    };
    let run = only(0xae80);
    assert!(!has(&run, RemarkId::UnconditionalIoctl) && !has(&run, RemarkId::TerminalInjection));
    assert_eq!(call(&run, Abi::X86_64, "ioctl").unwrap().when, ["u32(arg1) == 0xae80 (KVM_RUN)"]);
    assert!(text_of(&only(0x5412), RemarkId::TerminalInjection).contains("TIOCSTI"));
    // Only the file descriptor is looked at: any command.
    let mut program = careful();
    program.extend([jeq(nr("ioctl"), 0, 2), load(low(0)), jeq(3, 1, 0), ret(KILL), ret(ALLOW)]);
    assert!(has(&judge(&[program]), RemarkId::UnconditionalIoctl));
}

/// CVE-2019-7303: the command was compared in 64 bits, and the kernel takes 32.
#[test]
fn a_64_bit_comparison_that_the_kernel_truncates_does_not_hold_the_terminal() {
    let mut program = careful();
    let checks = [load(high(1)), jeq(0, 0, 2), load(low(1)), jeq(0x5412, 1, 0), ret(ALLOW), ret(KILL)];
    program.extend([jeq(nr("ioctl"), 1, 0), ret(KILL)]);
    program.extend(checks);
    let verdicts = judge(&[program]);
    assert_eq!(call(&verdicts, Abi::X86_64, "ioctl").unwrap().when, ["arg1 != 0x5412 (TIOCSTI)"]);
    assert!(text_of(&verdicts, RemarkId::TerminalInjection).contains("TIOCSTI"));
    assert!(!has(&verdicts, RemarkId::UnconditionalIoctl));
}

#[test]
fn socket_families_are_told_apart() {
    let only = |family: u32| {
        let mut program = careful();
        program.extend([jeq(nr("socket"), 0, 2), load(low(0)), jeq(family, 1, 0), ret(KILL), ret(ALLOW)]);
        judge(&[program])
    };
    assert!(!has(&only(1), RemarkId::SocketFamily));
    for (family, name) in [(16, "AF_NETLINK"), (17, "AF_PACKET"), (38, "AF_ALG"), (40, "AF_VSOCK")] {
        let verdicts = only(family);
        let of = verdicts.remarks.iter().filter(|remark| remark.id == RemarkId::SocketFamily).collect::<Vec<_>>();
        assert!(of.len() == 1 && of[0].text.contains(name), "{of:?}");
    }
    let any = judge(&[list(&[nr("socket")])]);
    assert_eq!(any.remarks.iter().filter(|remark| remark.id == RemarkId::SocketFamily).count(), 4);
}

#[test]
fn clone_with_namespaces_and_writable_executable_memory_are_found() {
    let masked = |call: &str, arg: u32, mask: u32| {
        let mut program = careful();
        program.extend([jeq(nr(call), 0, 2), load(low(arg)), branch(0x45, mask, 0, 1), ret(KILL), ret(ALLOW)]);
        judge(&[program])
    };
    let dangerous = |verdicts: &Verdicts| text_of(verdicts, RemarkId::DangerousCall);
    assert!(dangerous(&judge(&[list(&[nr("clone")])])).contains("clone is allowed"));
    assert!(!dangerous(&masked("clone", 0, 0x7e02_0000)).contains("clone is allowed"));
    assert!(dangerous(&masked("clone", 0, 0x7e00_0000)).contains("clone is allowed"), "CLONE_NEWNS was forgotten");
    assert!(dangerous(&judge(&[list(&[nr("mmap")])])).contains("mmap is allowed"));
    assert!(!dangerous(&masked("mmap", 2, 4)).contains("mmap is allowed"));
    assert!(dangerous(&judge(&[list(&[nr("personality")])])).contains("personality"));
    for name in ["ptrace", "process_vm_writev", "mount", "unshare", "setns", "bpf", "io_uring_setup", "userfaultfd"] {
        assert!(dangerous(&judge(&[list(&[nr(name)])])).contains(&format!("{name} is allowed")), "{name}");
    }
}

#[test]
fn an_unreachable_rule_is_found() {
    let verdicts = judge(&[list(&[nr("read"), nr("write"), nr("read")])]);
    let text = text_of(&verdicts, RemarkId::Unreachable);
    assert!(text.contains("comparison with 0x0"), "{text}");
    // The rule hides behind a range.
    let mut program = careful();
    program.extend([branch(0x35, 0, 0, 1), ret(ALLOW), jeq(nr("ptrace"), 0, 1), ret(ERRNO | 1), ret(KILL)]);
    let text = text_of(&judge(&[program]), RemarkId::Unreachable);
    assert!(text.contains("instructions 8 to 10"), "{text}");
    // A rule for a part of what an earlier one allows whole.
    let mut program = careful();
    program.extend([jeq(16, 0, 1), ret(ALLOW), jeq(16, 0, 3), load(low(1)), jeq(7, 0, 1), ret(ERRNO | 7), ret(KILL)]);
    assert!(has(&judge(&[program]), RemarkId::Unreachable));
    assert!(!has(&judge(&[list(&[nr("read"), nr("write")])]), RemarkId::Unreachable));
}

#[test]
fn filters_that_filter_nothing_or_everything_are_found() {
    let all = judge(&[vec![ret(ALLOW)]]);
    assert!(has(&all, RemarkId::AllowsEverything) && has(&all, RemarkId::DefaultAllow));
    assert_eq!(answers(&all, Abi::X32, 0x4000_0200), [Action::Allow]);
    let none = judge(&[vec![ret(KILL)]]);
    assert!(has(&none, RemarkId::DeniesEverything) && !has(&none, RemarkId::DefaultAllow));
    assert!(none.calls.is_empty());
    // All deny entries without an action: written at length, and still nothing.
    let mut hollow = careful();
    hollow[2] = ret(ALLOW);
    hollow[5] = ret(ALLOW);
    hollow.extend([jeq(nr("ptrace"), 0, 1), ret(ALLOW), ret(ALLOW)]);
    assert!(has(&judge(&[hollow]), RemarkId::AllowsEverything));
    assert_eq!(judge(&[]).remarks[0].id, RemarkId::NoFilter);
    assert_eq!(judge(&[]).calls.len(), judge(&[vec![ret(ALLOW)]]).calls.len());
    assert_eq!(Cache::default().judge(&[vec![]]), Err(Undecided::NoFilter(NoFilter::Empty)));
}

#[test]
fn what_looks_like_another_answer_is_found() {
    let with = |value| judge(&[vec![load(NR), jeq(1, 0, 1), ret(value), ret(KILL)]]);
    assert!(has(&with(0x0001_0000), RemarkId::UnknownAction));
    assert_eq!(answers(&with(0x0001_0000), Abi::X86_64, 1), [Action::KillProcess]);
    assert!(has(&with(ERRNO), RemarkId::ErrnoZero) && !has(&with(ERRNO | 1), RemarkId::ErrnoZero));
    assert!(has(&with(0x7fc0_0000), RemarkId::AsksOthers) && has(&with(0x7ff0_0000), RemarkId::AsksOthers));
    assert!(!has(&with(ALLOW), RemarkId::AsksOthers));
    assert!(has(&judge(&[vec![load(NR), jeq(1, 0, 1), ret(ALLOW), ret(0)]]), RemarkId::KillsThreadOnly));
    assert_eq!(answers(&with(ERRNO | 0xffff), Abi::X86_64, 1), [Action::Errno(4095)]);
}

/// An answer of its own for each of many inputs, so that the telling one is lost in the list.
#[test]
fn an_answer_is_found_among_however_many() {
    // Call 3 is handed to a tracer under 32,768 numbers, call 4 to a handler under as many; call 5 looks like success.
    let of = |action: u32| [load(low(0)), op(0x54, 0x7fff), op(0x44, action), op(0x16, 0)];
    let mut many = vec![load(NR), jeq(3, 0, 4)];
    many.extend(of(0x7ff0_0000));
    many.extend([jeq(4, 0, 4)]);
    many.extend(of(0x0003_0000));
    many.extend([jeq(5, 0, 1), ret(ERRNO), ret(KILL)]);
    let many = judge(&[many]);
    assert!(has(&many, RemarkId::AsksOthers) && has(&many, RemarkId::ErrnoZero));
    assert!(render(&many).lines().all(|line| line.len() < 1000), "a list of so many is cut");
    // 131,072 answers that kill, none of which the kernel knows.
    let unknown = judge(&[vec![load(low(0)), op(0x54, 0x1_ffff), op(0x44, 0x0010_0000), op(0x16, 0)]]);
    assert_eq!(unknown.remarks.iter().filter(|remark| remark.id == RemarkId::UnknownAction).count(), 1);
}

#[test]
fn numbers_without_a_name_are_told() {
    let verdicts = judge(&[list(&[0, 1, 900])]);
    assert_eq!(text_of(&verdicts, RemarkId::UnnamedAllowed), "x86-64 numbers without a name are allowed: 900");
    assert_eq!(answers(&verdicts, Abi::X86_64, 900), [Action::Allow]);
    assert!(!has(&judge(&[list(&[0, 1])]), RemarkId::UnnamedAllowed));
}

#[test]
fn halves_of_arguments_are_told() {
    let mut program = careful();
    program.extend([jeq(nr("munmap"), 0, 2), load(low(0)), jeq(0x1000, 1, 0), ret(KILL), ret(ALLOW)]);
    let half = judge(&[program]);
    assert!(text_of(&half, RemarkId::UpperHalfUnchecked).contains("munmap arg0"));
    let mut program = careful();
    program.extend([
        jeq(nr("munmap"), 0, 4),
        load(high(0)),
        jeq(0, 0, 2),
        load(low(0)),
        jeq(0x1000, 1, 0),
        ret(KILL),
        ret(ALLOW),
    ]);
    let whole = judge(&[program]);
    assert!(!has(&whole, RemarkId::UpperHalfUnchecked));
    assert_eq!(call(&whole, Abi::X86_64, "munmap").unwrap().when, ["arg0 == 0x1000"]);
}

#[test]
fn conditions_read_as_they_are_meant() {
    let when = |body: &[Instruction]| {
        let mut program = careful();
        program.extend([jeq(nr("dup3"), 1, 0), ret(KILL)]);
        program.extend(body);
        let verdicts = judge(&[program]);
        call(&verdicts, Abi::X86_64, "dup3").unwrap().when.clone()
    };
    let end = [ret(KILL), ret(ALLOW)];
    let with = |body: &[Instruction]| when(&[body, &end].concat());
    assert_eq!(with(&[load(low(2)), op(0x54, 0xf0), jeq(0x30, 1, 0)]), ["arg2 & 0xf0 == 0x30"]);
    assert_eq!(with(&[load(low(2)), branch(0x45, 0x11, 0, 1)]), ["arg2 & 0x11 == 0x0"]);
    assert_eq!(with(&[load(low(2)), branch(0x25, 9, 0, 1)]), ["u32(arg2) <= 0x9"]);
    assert_eq!(with(&[load(low(2)), branch(0x35, 9, 1, 0)]), ["u32(arg2) >= 0x9"]);
    // Below 9 it is killed, above 20 it is killed.
    assert_eq!(with(&[load(low(2)), branch(0x35, 9, 0, 1), branch(0x25, 20, 0, 1)]), ["0x9 <= u32(arg2) <= 0x14"]);
    assert_eq!(
        with(&[load(low(0)), jeq(1, 0, 2), load(low(1)), jeq(2, 1, 0)]),
        ["u32(arg0) == 0x1 && u32(arg1) == 0x2"]
    );
    assert_eq!(with(&[load(8), jeq(0x1000, 0, 2), load(12), jeq(0x7f, 1, 0)]), ["instruction_pointer == 0x7f00001000"]);
    assert_eq!(with(&[load(low(5)), op(0x14, 100), branch(0x35, 10, 0, 1)]), ["0x64 <= u32(arg5) <= 0x6d"]);
    assert_eq!(with(&[load(low(1)), op(0x74, 12), jeq(1, 1, 0)]), ["arg1 & 0xfffff000 == 0x1000"]);
}

#[test]
fn programs_that_the_kernel_refuses_are_refused_with_the_place() {
    let refused = |program: &[Instruction]| match Cache::default().judge(&[program.to_vec()]) {
        Err(Undecided::NoFilter(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&[op(0x94, 3), ret(0)]), NoFilter::Opcode(0, 0x94), "modulo");
    assert_eq!(refused(&[op(0x28, 0), ret(0)]), NoFilter::Opcode(0, 0x28), "half words");
    assert_eq!(refused(&[load(2), ret(0)]), NoFilter::Load(0, 2));
    assert_eq!(refused(&[load(64), ret(0)]), NoFilter::Load(0, 64));
    assert_eq!(refused(&[jeq(0, 1, 0), ret(0)]), NoFilter::Jump(0));
    assert_eq!(refused(&[op(0x05, u32::MAX), ret(0)]), NoFilter::Jump(0));
    assert_eq!(refused(&[op(0x60, 0), ret(0)]), NoFilter::Unwritten(0));
    assert_eq!(refused(&[jeq(0, 0, 1), op(0x02, 3), op(0x60, 3), ret(0)]), NoFilter::Unwritten(2));
    assert_eq!(refused(&[op(0x02, 16), ret(0)]), NoFilter::Memory(0, 16));
    assert_eq!(refused(&[op(0x34, 0), ret(0)]), NoFilter::Operand(0));
    assert_eq!(refused(&[op(0x64, 32), ret(0)]), NoFilter::Operand(0));
    assert_eq!(refused(&[load(0)]), NoFilter::NoReturn);
    assert_eq!(refused(&vec![ret(0); 4097]), NoFilter::Long(4097));
    assert!(from_hex("060000000000ff7").is_err() && from_hex("zz00000000000000").is_err() && from_hex("0600").is_err());
    assert!(from_hex("é600000000000000").is_err());
}

#[test]
fn what_cannot_be_decided_is_refused_in_bounded_time() {
    // arg0 * arg1 == 0x12345677: factoring, as a filter.
    let program =
        vec![load(low(0)), op(0x07, 0), load(low(1)), op(0x2c, 0), jeq(0x1234_5677, 0, 1), ret(ALLOW), ret(KILL)];
    let cache = Cache::default();
    let why = cache.judge(std::slice::from_ref(&program)).unwrap_err();
    assert_eq!(why, Undecided::TooLarge);
    assert!(why.to_string().contains("memory"));
    // And the next one is judged all the same.
    assert!(cache.judge(&[list(&[0])]).is_ok());
    assert_eq!(cache.judge(&[program]).unwrap_err(), Undecided::TooLarge);
    // Every number for itself.
    let odd = vec![load(NR), branch(0x45, 1, 0, 1), ret(ALLOW), ret(KILL)];
    assert!(matches!(cache.judge(&[odd]), Err(Undecided::TooManyRanges(_))));
}
