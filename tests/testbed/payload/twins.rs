//! Puts the questions of `policies/twins` to the kernel, and tries the runner's rights in twin domains.
//!
//! Plain std, compiled static by `rustc` alone, because in a runner's domain not even the C library can be opened.
//!   twins answers FILE   one question per line: `may SUBJECT TARGET CLASS PERM` or `becomes SUBJECT TARGET CLASS [NAME]`
//!   twins try CHILD DIR FILE   (in casemate_jailer_t) one attempt per line: `OPERATION TYPE`, executed in that domain
//!   twins OPERATION      the attempt itself, on descriptor 5; its exit status is the errno

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, argument: *mut u64) -> i32;
    fn syscall(number: i64, ...) -> i64;
    fn dup2(from: i32, to: i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
}

const SELINUX: &str = "/sys/fs/selinux";
const CAPGET: i64 = 125;
const OBJECT: RawFd = 5;
/// SIGURG: ignored unless it is caught.
const HARMLESS: i32 = 23;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["answers", file] => answers(file),
        ["try", child, dir, file] => attempts(child, dir, file),
        [operation] => std::process::exit(attempt(operation)),
        _ => std::process::exit(200),
    }
}

/// Writes one question to a file of selinuxfs and reads the answer.
fn ask(file: &str, question: &str) -> Option<String> {
    let mut file = OpenOptions::new().read(true).write(true).open(format!("{SELINUX}/{file}")).ok()?;
    file.write_all(question.as_bytes()).ok()?;
    file.rewind().ok()?;
    let mut answer = String::new();
    file.read_to_string(&mut answer).ok()?;
    Some(answer.trim_end_matches(['\0', '\n']).to_owned())
}

fn number(file: &str) -> Option<u32> {
    std::fs::read_to_string(format!("{SELINUX}/{file}")).ok()?.trim().parse().ok()
}

/// Answers to stdout, one per line: 1, 0, a context, or `-` where the policy does not know a word of the question.
fn answers(file: &str) {
    let mut out = String::new();
    for line in std::fs::read_to_string(file).expect("the questions").lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words.as_slice() {
            ["may", subject, target, class, perm] => may(subject, target, class, perm).map(|yes| u8::from(yes).to_string()),
            ["becomes", subject, target, class, name @ ..] => number(&format!("class/{class}/index"))
                .and_then(|index| ask("create", &format!("{subject} {target} {index} {}", name.join("")))),
            _ => panic!("not a question: {line}"),
        };
        out += &answer.unwrap_or_else(|| "-".to_owned());
        out.push('\n');
    }
    print!("{out}");
}

fn may(subject: &str, target: &str, class: &str, perm: &str) -> Option<bool> {
    let index = number(&format!("class/{class}/index"))?;
    let bit = number(&format!("class/{class}/perms/{perm}"))?;
    let answer = ask("access", &format!("{subject} {target} {index}"))?;
    let allowed = u32::from_str_radix(answer.split(' ').next()?, 16).ok()?;
    Some(allowed & (1 << (bit - 1)) != 0)
}

/// Opens the object of each operation, enters the domain with it, and prints `OPERATION TYPE ERRNO`.
fn attempts(child: &str, dir: &str, file: &str) {
    for line in std::fs::read_to_string(file).expect("the attempts").lines() {
        let (operation, type_) = line.split_once(' ').expect("two words");
        let path = match operation.split('-').next() {
            Some("image" | "content" | "plan") => format!("{dir}/{}", operation.split('-').next().unwrap_or_default()),
            Some("imageblock" | "contentblock") => format!("{dir}/{}", operation.split('-').next().unwrap_or_default()),
            Some("kvm") => "/dev/kvm".to_owned(),
            _ => format!("{dir}/image"),
        };
        let writable = matches!(operation.split('-').next(), Some("image" | "kvm" | "exec" | "self" | "fd"));
        let object = match OpenOptions::new().read(true).write(writable).open(&path) {
            Ok(object) => object,
            Err(e) => {
                println!("{line} cannot open {path}: {e}");
                continue;
            }
        };
        println!("{line} {}", in_domain(child, operation, type_, &object));
    }
}

fn in_domain(child: &str, operation: &str, type_: &str, object: &File) -> i32 {
    let label = format!("unconfined_u:unconfined_r:{type_}:s0:c1,c2");
    let fd = object.as_raw_fd();
    let mut command = Command::new(child);
    command.arg(operation).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: dup2 and a write to procfs, after fork and before exec.
    unsafe {
        command.pre_exec(move || {
            if dup2(fd, OBJECT) < 0 {
                return Err(io::Error::last_os_error());
            }
            OpenOptions::new().write(true).open("/proc/thread-self/attr/exec")?.write_all(label.as_bytes())
        });
    }
    match command.status() {
        Ok(status) => status.code().unwrap_or(-1),
        Err(e) => e.raw_os_error().unwrap_or(-1),
    }
}

fn result(ok: bool) -> i32 {
    if ok { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(201) }
}

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |e| e.raw_os_error().unwrap_or(202))
}

/// The errno of one operation, 0 if it was allowed.
fn attempt(operation: &str) -> i32 {
    // SAFETY: whatever the parent passed as 5; it is only used while this process lives.
    let object = unsafe { BorrowedFd::borrow_raw(OBJECT) };
    let Ok(file) = object.try_clone_to_owned().map(File::from) else { return 9 };
    let mut value = [0_u64; 8];
    let mut control = |request: u64| {
        // SAFETY: requests that write at most a u64 to a buffer of eight.
        result(unsafe { ioctl(file.as_raw_fd(), request, value.as_mut_ptr()) } >= 0)
    };
    match operation {
        "exec" => 0,
        "fd" | "image-read" | "content-read" | "plan-read" | "imageblock-read" | "contentblock-read" => {
            errno(file.read_at(&mut [0; 512], 0))
        }
        "image-write" => errno(file.write_at(b"W", 0)),
        "image-getattr" | "content-getattr" | "plan-getattr" => errno(file.metadata()),
        // BLKSSZGET, which the rules name; BLKROGET, which they do not
        "imageblock-ioctl" | "contentblock-ioctl" => control(0x1268),
        "imageblock-other" | "contentblock-other" => control(0x125e),
        // KVM_GET_API_VERSION, which takes no argument; TCGETS
        // SAFETY: a request without argument.
        "kvm-ioctl" => result(unsafe { ioctl(file.as_raw_fd(), 0xae00, std::ptr::null_mut()) } >= 0),
        "kvm-other" => control(0x5401),
        // SAFETY: a signal that is ignored, to ourselves.
        "self-signal" => result(unsafe { kill(i32::try_from(std::process::id()).unwrap_or(0), HARMLESS) } == 0),
        "self-getcap" => {
            let mut header = [0x2008_0522_u32, 0];
            let mut data = [0_u32; 6];
            // SAFETY: version 3 writes two sets of three words.
            result(unsafe { syscall(CAPGET, header.as_mut_ptr(), data.as_mut_ptr()) } == 0)
        }
        "self-socket" => errno(UnixStream::pair()),
        _ => 203,
    }
}
