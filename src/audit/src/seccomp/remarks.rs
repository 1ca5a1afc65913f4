//! What is worth a finding in a stack of filters.

use super::danger::{CALLS, FAMILIES, GUARDED, TERMINAL};
use super::diagram::{Bounded, Diagrams, FALSE, Field, Node};
use super::judge::{Layer, given_arch};
use super::outline::Outline;
use super::program::{Op, Operand, Test};
use super::reasons::IS_ALLOWED;
use super::widths::{Width, width};
use super::{Abi, Action, Input, Remark, RemarkId, Verdicts, action};
use crate::rule::Severity::{self, Critical, High, Info, Low, Medium};

/// Names that one remark lists.
const MOST_NAMES: usize = 12;

pub(super) fn all(d: &mut Diagrams, verdicts: &Verdicts, answer: Node, layers: &[Layer]) -> Bounded<Vec<Remark>> {
    let mut remarks = Vec::new();
    if layers.is_empty() {
        let text = "the thread has no seccomp filter: every system call is allowed";
        return Ok(vec![remark(RemarkId::NoFilter, High, text)]);
    }
    for (index, layer) in layers.iter().enumerate() {
        let first = remarks.len();
        of_layer(d, layer, &mut remarks)?;
        for remark in &mut remarks[first..] {
            remark.filter = Some(index);
        }
    }
    for (index, filter) in verdicts.filters.iter().enumerate() {
        if let Some(name) = &filter.claims {
            let at = filter.differences.first().and_then(|d| d.name.clone());
            let text = format!("bears the marker of {name} and answers {} inputs otherwise", filter.differences.len());
            remarks.push(Remark { filter: Some(index), call: at, ..remark(RemarkId::DiffersFromOurs, Critical, text) });
        }
    }
    let passes = d.map(answer, |value| u32::from(Action::of(value).passes()))?;
    let stack = Stack { passes: Abi::ALL.map(|abi| (abi, given_arch(d, passes, abi))) };
    stack.whole(d, verdicts, answer, &mut remarks)?;
    stack.other_abis(d, answer, &mut remarks)?;
    stack.dangerous(d, &mut remarks)?;
    stack.arguments(d, &mut remarks)?;
    stack.upper_halves(d, &mut remarks)?;
    Ok(remarks)
}

fn remark(id: RemarkId, severity: Severity, text: impl Into<String>) -> Remark {
    Remark { id, severity, text: text.into(), call: None, filter: None, instruction: None }
}

/// What one filter is by itself.
fn of_layer(d: &mut Diagrams, layer: &Layer, remarks: &mut Vec<Remark>) -> Bounded<()> {
    let passes = d.map(layer.answer, |value| u32::from(Action::of(value).passes()))?;
    if passes == FALSE {
        let text = "allows no system call at all: an empty list, or a filter that was never tried";
        remarks.push(remark(RemarkId::DeniesEverything, Medium, text));
    } else if d.number(layer.answer) == Some(Action::Allow.value()) {
        remarks.push(remark(RemarkId::AllowsEverything, High, "allows every system call: it filters nothing"));
    }
    let unknown = d.map(layer.analysis.answer, |value| u32::from(!action::is_known(value)))?;
    if let Some(input) = d.example(unknown, &Input::default()) {
        let value = d.evaluate(layer.analysis.answer, &input);
        let text = format!("answers {value:#x}, an action that the kernel does not know: it kills the process");
        remarks.push(remark(RemarkId::UnknownAction, Medium, text));
    }
    let nobodys = Input { nr: Abi::X86_64.nobodys(), arch: Abi::X86_64.arch(), ..Input::default() };
    unreachable(layer, d.evaluate(layer.answer, &nobodys), remarks);
    Ok(())
}

/// Instructions that no input reaches, but for answers that are the filter's default: compilers of decision trees leave
/// such behind.
fn unreachable(layer: &Layer, default: u32, remarks: &mut Vec<Remark>) {
    let analysis = &layer.analysis;
    let is_default =
        |op: &Op| matches!(op, Op::Return(value) if Action::of(*value).value() == default) || matches!(op, Op::Jump(_));
    let mut at = 0;
    while at < analysis.ops.len() {
        let end = (at..analysis.ops.len()).find(|at| analysis.reached[*at]).unwrap_or(analysis.ops.len());
        let dead = at..end;
        at = end + 1;
        if dead.is_empty() || analysis.ops[dead.clone()].iter().all(is_default) {
            continue;
        }
        let text = match dead.len() {
            1 => format!("instruction {} is reached by no input", dead.start),
            _ => format!("instructions {} to {} are reached by no input", dead.start, dead.end - 1),
        };
        remarks.push(Remark { instruction: Some(dead.start), ..remark(RemarkId::Unreachable, Medium, text) });
    }
    for at in &analysis.never {
        if let Op::Branch { test: Test::Equal, with: Operand::Constant(k), .. } = analysis.ops[*at] {
            let text = format!("the comparison with {k:#x} in instruction {at} never holds: an earlier rule hides it");
            remarks.push(Remark { instruction: Some(*at), ..remark(RemarkId::Unreachable, Low, text) });
        }
    }
}

/// What all filters together let through, per ABI; 1 where the call is run.
struct Stack {
    passes: [(Abi, Node); 3],
}

impl Stack {
    fn of(&self, d: &Diagrams, abi: Abi, number: u32) -> Node {
        d.given(self.passes[abi as usize].1, Field::Number, number.into())
    }

    /// Under which arguments the call of that name passes; false where the ABI has none.
    fn named(&self, d: &Diagrams, abi: Abi, name: &str) -> Node {
        abi.number(name).map_or(FALSE, |number| self.of(d, abi, number))
    }

    fn whole(&self, d: &mut Diagrams, verdicts: &Verdicts, answer: Node, remarks: &mut Vec<Remark>) -> Bounded<()> {
        let listless = self.of(d, Abi::X86_64, Abi::X86_64.nobodys()) != FALSE;
        if listless {
            let text = "calls that nobody listed are allowed: what the next kernel adds is open";
            remarks.push(remark(RemarkId::DefaultAllow, Medium, text));
        }
        for table in verdicts.tables.iter().filter(|_| !listless) {
            let open = table.ranges.iter().filter(|range| range.answers.iter().any(|answer| answer.passes()));
            let unnamed =
                open.filter(|range| (range.first..=range.last).take(1024).any(|n| table.abi.name(n).is_none()));
            let numbers: Vec<String> = unnamed.map(|range| range_text(range.first, range.last)).collect();
            if !numbers.is_empty() {
                let text = format!("{} numbers without a name are allowed: {}", table.abi, list(&numbers));
                remarks.push(remark(RemarkId::UnnamedAllowed, Low, text));
            }
        }
        // Asked of the whole diagram: a list of its answers may be too long to be made.
        let asks = |value| u32::from(matches!(Action::of(value), Action::UserNotify | Action::Trace(_)));
        if d.map(answer, asks)? != FALSE {
            let text = "a supervisor or tracer decides some calls: what it allows is not in the filter";
            remarks.push(remark(RemarkId::AsksOthers, Medium, text));
        }
        if d.map(answer, |value| u32::from(Action::of(value) == Action::Errno(0)))? != FALSE {
            let text = "some denied calls return 0: the caller takes them for done";
            remarks.push(remark(RemarkId::ErrnoZero, Medium, text));
        }
        kills_thread(verdicts, remarks);
        Ok(())
    }

    /// i386 and x32 against x86-64, call by call.
    fn other_abis(&self, d: &mut Diagrams, answer: Node, remarks: &mut Vec<Remark>) -> Bounded<()> {
        let (native, i386) = (given_arch(d, answer, Abi::X86_64), given_arch(d, answer, Abi::I386));
        if native == i386 && d.depends(native, |variable| variable < Field::Argument(0).variable(63)) {
            let text =
                "no check of the architecture: i386 calls are decided by x86-64 numbers, so 26 is msync or ptrace";
            remarks.push(remark(RemarkId::NoAbiCheck, High, text));
        }
        // An i386 caller has 32 bits per argument.
        let mut narrow = super::diagram::TRUE;
        for index in 0..6 {
            let upper = d.equals(Field::Argument(index), 0xffff_ffff_0000_0000, 0)?;
            narrow = d.and(narrow, upper)?;
        }
        for (abi, id, inputs) in
            [(Abi::I386, RemarkId::I386Open, narrow), (Abi::X32, RemarkId::X32Open, super::diagram::TRUE)]
        {
            let mut more = Vec::new();
            for (number, name) in abi.table() {
                let there = self.of(d, abi, number);
                if there == FALSE || Abi::X86_64.number(name).is_none() {
                    continue;
                }
                let here = self.named(d, Abi::X86_64, name);
                let there = d.and(there, inputs)?;
                if d.choose(here, FALSE, there)? != FALSE {
                    more.push(name.to_owned());
                }
            }
            if !more.is_empty() {
                let text = format!("{abi} allows what x86-64 denies: {}", list(&more));
                remarks.push(remark(id, High, text));
            }
        }
        Ok(())
    }

    fn dangerous(&self, d: &mut Diagrams, remarks: &mut Vec<Remark>) -> Bounded<()> {
        for (names, severity, why) in CALLS {
            for name in names.split_whitespace() {
                let abis: Vec<Abi> = Abi::ALL.into_iter().filter(|abi| self.named(d, *abi, name) != FALSE).collect();
                push_call(remarks, name, &abis, *severity, why);
            }
        }
        for guarded in GUARDED {
            let mut abis = Vec::new();
            for abi in Abi::ALL {
                let call = self.named(d, abi, guarded.call);
                let is = d.equals(Field::Argument(guarded.arg), guarded.mask, guarded.value)?;
                let bad = if guarded.is { is } else { d.not(is)? };
                if d.and(call, bad)? != FALSE {
                    abis.push(abi);
                }
            }
            push_call(remarks, guarded.call, &abis, guarded.severity, guarded.why);
        }
        Ok(())
    }

    /// Terminals and families of sockets, by the 32 bits that the kernel takes.
    fn arguments(&self, d: &mut Diagrams, remarks: &mut Vec<Remark>) -> Bounded<()> {
        let int = u64::from(u32::MAX);
        for abi in Abi::ALL {
            let ioctl = self.named(d, abi, "ioctl");
            let of_ioctl = |id, severity, text| Remark { call: Some("ioctl".into()), ..remark(id, severity, text) };
            if ioctl != FALSE && !d.depends(ioctl, |variable| Field::of(variable).0 == Field::Argument(1)) {
                let text = format!("ioctl is allowed on {abi} whatever the command: every driver's whole surface");
                remarks.push(of_ioctl(RemarkId::UnconditionalIoctl, High, text));
            }
            for (command, name) in TERMINAL {
                let is = d.equals(Field::Argument(1), int, *command)?;
                if d.and(ioctl, is)? != FALSE {
                    let text =
                        format!("ioctl {name}{IS_ALLOWED} ({abi}): types into the terminal of whoever started it");
                    remarks.push(of_ioctl(RemarkId::TerminalInjection, Medium, text));
                }
            }
            let socket = self.named(d, abi, "socket");
            for (family, name, why) in FAMILIES {
                let is = d.equals(Field::Argument(0), int, *family)?;
                if d.and(socket, is)? != FALSE {
                    let text = format!("socket {name}{IS_ALLOWED} ({abi}): {why}");
                    let of_socket = remark(RemarkId::SocketFamily, Medium, text);
                    remarks.push(Remark { call: Some("socket".into()), ..of_socket });
                }
            }
        }
        Ok(())
    }

    /// Arguments whose lower half is compared while the upper one is free.
    fn upper_halves(&self, d: &mut Diagrams, remarks: &mut Vec<Remark>) -> Bounded<()> {
        let (mut whole, mut unknown, mut lower) = (Vec::new(), Vec::new(), Vec::new());
        for (number, name) in Abi::X86_64.table() {
            let condition = self.of(d, Abi::X86_64, number);
            for index in 0..6 {
                let field = Field::Argument(index);
                let half =
                    |upper: bool| d.depends(condition, |v| Field::of(v).0 == field && (Field::of(v).1 >= 32) == upper);
                if half(false) && !half(true) {
                    let list = match width(d, condition, name, index)? {
                        Width::Whole => &mut whole,
                        Width::Unknown => &mut unknown,
                        Width::Lower => &mut lower,
                    };
                    list.push(format!("{name} arg{index}"));
                }
            }
        }
        for (args, severity, what) in [
            (whole, Medium, "and the kernel takes all 64 bits"),
            (unknown, Low, "and the kernel may take all 64 bits"),
            (lower, Info, "which is all that the kernel looks at"),
        ] {
            if !args.is_empty() {
                let text = format!("the lower half is compared, {what}: {}", list(&args));
                remarks.push(remark(RemarkId::UpperHalfUnchecked, severity, text));
            }
        }
        Ok(())
    }
}

/// By name what kills one thread and belongs to this ABI; what no compiler of the process's own emits is for information.
fn kills_thread(verdicts: &Verdicts, remarks: &mut Vec<Remark>) {
    let kills = |answers: &[Action]| answers.contains(&Action::KillThread);
    let (mut named, mut whole) = (Vec::new(), Vec::new());
    for table in &verdicts.tables {
        let outline = Outline::of(table);
        if kills(&outline.default) {
            whole.push(table.abi);
        }
        let other = outline.other.into_iter().filter(|(answers, _)| kills(answers));
        let entries = other.flat_map(|(_, entries)| entries).filter(|entry| table.abi.number(entry).is_some());
        named.extend(
            entries.map(|entry| if table.abi == Abi::X86_64 { entry } else { format!("{entry} ({})", table.abi) }),
        );
    }
    let so = "the calling thread only: the others go on without it, with its locks held";
    if whole.contains(&Abi::X86_64) {
        remarks.push(remark(RemarkId::KillsThreadOnly, Low, format!("what is denied kills {so}")));
        return;
    }
    if !named.is_empty() {
        remarks.push(remark(RemarkId::KillsThreadOnly, Low, format!("{} kill {so}", list(&named))));
    }
    if !whole.is_empty() {
        let abis: Vec<String> = whole.iter().map(Abi::to_string).collect();
        let text = format!("a call of another ABI ({}) kills {so}", abis.join(", "));
        remarks.push(remark(RemarkId::KillsThreadOnly, Info, text));
    }
}

fn push_call(remarks: &mut Vec<Remark>, name: &str, abis: &[Abi], severity: Severity, why: &str) {
    if !abis.is_empty() {
        let abis: Vec<String> = abis.iter().map(Abi::to_string).collect();
        let text = format!("{name}{IS_ALLOWED} ({}): {why}", abis.join(", "));
        remarks.push(Remark { call: Some(name.to_owned()), ..remark(RemarkId::DangerousCall, severity, text) });
    }
}

fn range_text(first: u32, last: u32) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

fn list(names: &[String]) -> String {
    match names.len().checked_sub(MOST_NAMES) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..MOST_NAMES].join(", ")),
    }
}
