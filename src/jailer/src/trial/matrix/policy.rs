//! What the loaded policy says of a row, asked of the kernel with the real labels (selinuxfs `access`).
//!
//! The checks of each attempt are those of the kernel's hooks (security/selinux/hooks.c); where a class has no hook there
//! is nothing to ask, and the answer is "allows". Whether types or categories say no is told apart by asking again
//! with the object at the subject's own level.

use std::io;

use casemate_confine::objects::{Act, Object};
use casemate_label::mode::SelinuxFs;
use casemate_label::{Context, Level};
use serde::Serialize;

use super::stage::Entry;
use super::table::{Spec, Thing, Way};

/// The policy's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Allows,
    /// Type enforcement denies: no rule lets the subject's type do it, at any level.
    Types,
    /// The types are allowed to; the categories deny.
    Categories,
}

/// One question: may the subject do this to that?
struct Need<'a> {
    object: Option<&'a Context>,
    class: &'static str,
    perms: Vec<&'static str>,
}

fn need<'a>(object: Option<&'a Context>, class: &'static str, perms: &[&'static str]) -> Need<'a> {
    Need { object, class, perms: perms.to_vec() }
}

/// What the policy says of an attempt by `subject`.
pub fn verdict(fs: &SelinuxFs, subject: &Context, spec: &Spec, entry: &Entry) -> io::Result<Verdict> {
    let mut needs = match spec.way {
        Way::Name => by_name(subject, spec, entry),
        Way::Passed | Way::Inherited => received(subject, entry),
    };
    if let (Way::Passed | Way::Inherited, Some(extra)) = (spec.way, used(spec, entry)) {
        needs.push(extra);
    }
    let verdicts = needs.iter().map(|need| one(fs, subject, need));
    let verdicts = verdicts.collect::<io::Result<Vec<_>>>()?;
    // A type that is denied is denied at every level: the stronger answer.
    let any = |wanted| verdicts.contains(&wanted);
    Ok(match (any(Verdict::Types), any(Verdict::Categories)) {
        (true, _) => Verdict::Types,
        (_, true) => Verdict::Categories,
        _ => Verdict::Allows,
    })
}

/// May `subject` make one? The label of what would be made is its own, but for files.
pub fn may_make(fs: &SelinuxFs, subject: &Context, object: Object, place: &Context) -> io::Result<Verdict> {
    let own = Some(subject);
    let in_place = need(Some(place), "dir", &["search", "write", "add_name"]);
    let needs = match object {
        Object::File | Object::BlockDevice | Object::Directory | Object::Fifo => vec![in_place],
        Object::Stream => vec![in_place, need(own, "unix_stream_socket", &["create", "bind", "listen"])],
        Object::Datagram => vec![in_place, need(own, "unix_dgram_socket", &["create", "bind"])],
        Object::Abstract => vec![need(own, "unix_stream_socket", &["create", "bind", "listen"])],
        Object::Connection => vec![need(own, "unix_stream_socket", &["create", "write"])],
        Object::Shm => vec![need(own, "shm", &["create"])],
        Object::Sem => vec![need(own, "sem", &["create"])],
        Object::Msg => vec![need(own, "msgq", &["create"])],
        Object::Key => vec![need(own, "key", &["write", "search", "create"])],
        Object::Vsock => vec![need(own, "vsock_socket", &["create", "bind", "listen"])],
        Object::Uring | Object::Userfault => vec![need(own, "anon_inode", &["create"])],
        // It would open a device node or a file system's root first; asked for below.
        Object::Tap | Object::Vm | Object::Vcpu | Object::Queue | Object::SharedFile | Object::Memfd => {
            return opens(fs, subject, object);
        }
        Object::Process => vec![need(own, "process", &["fork"])],
        // No hook: what comes of it lies with who may have it.
        Object::Event => Vec::new(),
    };
    for need in &needs {
        let verdict = one(fs, subject, need)?;
        if verdict != Verdict::Allows {
            return Ok(verdict);
        }
    }
    Ok(Verdict::Allows)
}

fn opens(fs: &SelinuxFs, subject: &Context, object: Object) -> io::Result<Verdict> {
    let (path, class, perms): (&str, _, &[&str]) = match object {
        Object::Tap => ("/dev/net/tun", "chr_file", &["open", "read", "write"]),
        Object::SharedFile | Object::Queue => ("/dev/shm", "dir", &["search", "write", "add_name"]),
        // Nothing is asked when it is made; the first write is asked about, for its file was never opened.
        Object::Memfd => ("/dev/shm", "file", &["write"]),
        _ => ("/dev/kvm", "chr_file", &["open", "read", "write"]),
    };
    let label = super::stage::label_at(path.as_ref()).ok_or(io::ErrorKind::NotFound)?;
    one(fs, subject, &need(Some(&label), class, perms))
}

fn one(fs: &SelinuxFs, subject: &Context, need: &Need<'_>) -> io::Result<Verdict> {
    let Some(object) = need.object else {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the label of the {} is not known", need.class)));
    };
    if granted(fs, subject, object, need)? {
        return Ok(Verdict::Allows);
    }
    let level = subject.range().map_or(Level::S0, |range| *range.low());
    let at_own_level = granted(fs, subject, &object.with_level(level), need)?;
    Ok(if at_own_level { Verdict::Categories } else { Verdict::Types })
}

fn granted(fs: &SelinuxFs, subject: &Context, object: &Context, need: &Need<'_>) -> io::Result<bool> {
    let allowed = fs.access(subject, object, need.class)?.allowed;
    for perm in &need.perms {
        if allowed & fs.permission(need.class, perm)? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A descriptor that arrives: `fd use` of who opened it, then what its mode may do (selinux_file_receive, and
/// flush_unauthorized_files at exec). Anonymous inodes that the kernel keeps private have no label of their own.
fn received<'a>(subject: &Context, entry: &'a Entry) -> Vec<Need<'a>> {
    // One's own descriptor is not asked about.
    let foreign = entry.opener.as_ref() != Some(subject);
    let mut needs = Vec::new();
    if foreign {
        needs.push(need(entry.opener.as_ref(), "fd", &["use"]));
    }
    if let Some(class) = entry.class {
        let label = if class == "unix_stream_socket" { entry.socket.as_ref() } else { entry.label.as_ref() };
        needs.push(Need { object: label, class, perms: entry.perms.clone() });
    }
    needs
}

/// What the use asks beyond what the arrival asked.
fn used<'a>(spec: &Spec, entry: &'a Entry) -> Option<Need<'a>> {
    let class = entry.class?;
    matches!(spec.act, Act::AskTap | Act::AskUserfault).then(|| need(entry.label.as_ref(), class, &["ioctl"]))
}

fn by_name<'a>(subject: &'a Context, spec: &Spec, entry: &'a Entry) -> Vec<Need<'a>> {
    let (label, socket, own) = (entry.label.as_ref(), entry.socket.as_ref(), Some(subject));
    let class = match spec.thing {
        Thing::Of(Object::BlockDevice) => "blk_file",
        Thing::Of(Object::Fifo) => "fifo_file",
        _ => "file",
    };
    let trace = || need(entry.process.as_ref(), "process", &["ptrace"]);
    match (spec.act, spec.thing) {
        (Act::OpenRead, Thing::Memory) => {
            vec![need(label, "dir", &["search"]), need(label, class, &["open", "read"]), trace()]
        }
        (Act::OpenRead, Thing::PlanInProc) => {
            vec![need(entry.process.as_ref(), "dir", &["search"]), need(label, class, &["open", "read"])]
        }
        (Act::OpenRead, _) => vec![need(label, class, &["open", "read"])],
        (Act::OpenWrite, _) => vec![need(label, class, &["open", "write"])],
        (Act::List, _) => vec![need(label, "dir", &["open", "read"])],
        (Act::AddName, _) => vec![need(label, "dir", &["search", "write", "add_name", "remove_name"])],
        (Act::ConnectStream | Act::ConnectPacket, _) => vec![
            need(own, "unix_stream_socket", &["create", "connect"]),
            need(label, "sock_file", &["write"]),
            need(socket, "unix_stream_socket", &["connectto"]),
        ],
        (Act::ConnectAbstract, _) => vec![
            need(own, "unix_stream_socket", &["create", "connect"]),
            need(socket, "unix_stream_socket", &["connectto"]),
        ],
        (Act::Send, _) => vec![
            need(own, "unix_dgram_socket", &["create", "write"]),
            need(label, "sock_file", &["write"]),
            need(socket, "unix_dgram_socket", &["sendto"]),
        ],
        (Act::Shm, _) => vec![need(label, "shm", &["unix_read", "unix_write", "read", "write"])],
        (Act::Sem, _) => vec![need(label, "sem", &["unix_write", "read", "write"])],
        (Act::Msg, _) => vec![need(label, "msgq", &["unix_read"])],
        (Act::Queue, _) => vec![need(label, "file", &["open", "read", "write"])],
        (Act::Key, _) => vec![need(label, "key", &["read"])],
        // The kernel asks nothing of the socket that is connected to.
        (Act::Vsock, _) => vec![need(own, "vsock_socket", &["create", "connect"])],
        (Act::Tap, _) => vec![need(socket, "tun_socket", &["relabelfrom"]), need(own, "tun_socket", &["relabelto"])],
        (Act::Signal, _) if entry.foreign => {
            vec![need(label, "process", &["signal"]), need(own, "capability", &["kill"])]
        }
        (Act::Signal, _) => vec![need(label, "process", &["signal"])],
        (Act::Trace | Act::ReadMemory | Act::TakeDescriptor, _) => vec![need(label, "process", &["ptrace"])],
        (Act::Limit, _) => vec![need(label, "process", &["getrlimit"])],
        (Act::Priority, _) => vec![need(label, "process", &["setsched"])],
        _ => Vec::new(),
    }
}
