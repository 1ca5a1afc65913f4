//! Several filters on one thread, whole trees as libseccomp writes them, and the cache.

use casemate_filters::Filter as Ours;

use super::interpreter::run_stack;
use super::*;

#[test]
fn the_lowest_action_wins_and_the_newest_of_equals() {
    // seccomp(2), in the order of precedence.
    let actions = [KILL, 0, 0x0003_0001, ERRNO | 1, 0x7fc0_0000, 0x7ff0_0001, 0x7ffc_0000, ALLOW];
    for (rank, stronger) in actions.iter().enumerate() {
        for weaker in &actions[rank + 1..] {
            for stack in [[*stronger, *weaker], [*weaker, *stronger]] {
                let verdicts = judge(&stack.map(|value| vec![ret(value)]));
                assert_eq!(answers(&verdicts, Abi::X86_64, 0), [Action::of(*stronger)], "{stack:x?}");
            }
        }
    }
    let two = judge(&[vec![ret(ERRNO | 5)], vec![ret(ERRNO | 7)], vec![ret(ALLOW)]]);
    assert_eq!(answers(&two, Abi::I386, 3), [Action::Errno(5)]);
}

#[test]
fn a_runners_stack_allows_what_both_allow() {
    let stack = [Ours::RunnerMain.program().to_vec(), Ours::JailerExec.program().to_vec()];
    let verdicts = judge(&stack);
    let known: Vec<_> = verdicts.filters.iter().filter_map(|filter| filter.known.as_deref()).collect();
    assert_eq!(known, ["runner.main", "jailer.exec"]);
    assert!(call(&verdicts, Abi::X86_64, "openat").is_none(), "a runner opens nothing");
    // kcmp: the newest filter's marker.
    assert_eq!(answers(&verdicts, Abi::X86_64, nr("kcmp")), [Action::Errno(Ours::RunnerMain.marker() as u16)]);
    let read = call(&verdicts, Abi::X86_64, "read").unwrap();
    assert_eq!(read.why, ["inherited descriptors, eventfds, sockets"]);
    let text = render(&verdicts);
    assert!(text.contains("equivalent to runner.main") && text.contains("why: inherited descriptors"));
    assert!(text.contains("i386: nothing is allowed (kill process)"), "{text}");
}

/// As libseccomp generates: a tree over the numbers, both halves of 64-bit arguments, three ABIs.
fn tree() -> Program {
    vec![
        load(ARCH),
        jeq(I386, 0, 5),
        load(NR),
        jeq(3, 2, 0), // read
        jeq(4, 1, 0), // write
        ret(ERRNO | 38),
        ret(ALLOW),
        jeq(X86_64, 1, 0), // 7
        ret(KILL),
        load(NR),
        branch(0x35, 0x4000_0000, 0, 4),
        jeq(0x4000_0000, 2, 0),
        jeq(0x4000_0001, 1, 0),
        ret(ERRNO | 38),
        ret(ALLOW),
        branch(0x25, 1, 2, 0), // 15: read, write
        ret(ALLOW),
        ret(KILL),
        jeq(nr("personality"), 0, 7), // 18
        load(high(0)),
        jeq(0, 0, 3),
        load(low(0)),
        jeq(0, 2, 0),
        jeq(0xffff_ffff, 1, 0),
        ret(ERRNO | 1),
        ret(ALLOW),
        jeq(nr("clone"), 0, 4), // 26
        load(low(0)),
        op(0x54, 0x7e02_0000),
        jeq(0, 0, 1),
        ret(ALLOW),
        ret(ERRNO | 1),
    ]
}

#[test]
fn a_tree_over_three_abis_is_read_exactly() {
    let verdicts = judge(&[tree()]);
    let named = |abi| {
        verdicts.calls.iter().filter(|call| call.abi == abi).filter_map(|call| call.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(named(Abi::X86_64), ["read", "write", "clone", "personality"]);
    assert_eq!(named(Abi::X32), ["read", "write"]);
    assert_eq!(named(Abi::I386), ["read", "write"]);
    let personality = &call(&verdicts, Abi::X86_64, "personality").unwrap().when;
    assert_eq!(personality[..], ["arg0 == 0x0 (PER_LINUX)", "arg0 == 0xffffffff (query)"]);
    let clone = &call(&verdicts, Abi::X86_64, "clone").unwrap().when;
    let no = "no CLONE_NEWNS|CLONE_NEWCGROUP|CLONE_NEWUTS|CLONE_NEWIPC|CLONE_NEWUSER|CLONE_NEWPID|CLONE_NEWNET";
    assert_eq!(clone[..], [format!("arg0 & 0x7e020000 == 0x0 ({no})")]);
    for id in [RemarkId::NoAbiCheck, RemarkId::I386Open, RemarkId::X32Open, RemarkId::DefaultAllow] {
        assert!(!has(&verdicts, id), "{id:?}");
    }
    assert!(!text_of(&verdicts, RemarkId::DangerousCall).contains("clone is"));
    // The same, asked of the interpreter.
    for abi in Abi::ALL {
        for number in (0..600).map(|n| n + abi.base()) {
            let input = Input { nr: number, arch: abi.arch(), ..Input::default() };
            assert!(answers(&verdicts, abi, number).contains(&run_stack(&[tree()], &input)), "{abi} {number}");
        }
    }
}

#[test]
fn i386_that_allows_more_than_its_twin_is_found() {
    // ioctl under a condition on x86-64, and under none on i386 (54).
    let program = vec![
        load(ARCH),
        jeq(I386, 0, 3),
        load(NR),
        jeq(54, 5, 0),
        ret(KILL),
        load(NR),
        jeq(16, 0, 3),
        load(low(1)),
        jeq(0xae80, 0, 1),
        ret(ALLOW),
        ret(KILL),
    ];
    let text = text_of(&judge(&[program]), RemarkId::I386Open);
    assert_eq!(text, "i386 allows what x86-64 denies: ioctl");
}

#[test]
fn verdicts_are_made_once_and_programs_are_kept() {
    let cache = Cache::default();
    let stack = [Ours::RunnerIo.program().to_vec(), Ours::JailerExec.program().to_vec()];
    let first = cache.judge(&stack).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &cache.judge(&stack).unwrap()));
    let programs = cache.programs();
    assert_eq!(programs.len(), 2);
    for filter in &first.filters {
        let program = from_hex(&programs[&filter.digest]).unwrap();
        assert_eq!(digest(&program), filter.digest);
    }
    // On another machine, from the evidence alone.
    let again: Vec<Program> = first.filters.iter().map(|filter| from_hex(&programs[&filter.digest]).unwrap()).collect();
    assert_eq!(*judge(&again), *first);
    let json = toml::Value::try_from(&*first).unwrap();
    assert_eq!(json.try_into::<Verdicts>().unwrap(), *first);
}
