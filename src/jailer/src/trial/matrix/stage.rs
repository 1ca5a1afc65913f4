//! The objects of one sandbox, real ones where it has them: each with its labels as the kernel reports them.
//!
//! What carries a label that can be asked for (files, sockets, keys) is made here with the sandbox's; what takes its
//! maker's label whatever is asked (IPC, taps, io_uring) comes from a maker in a domain that may make it, or, without
//! one, from this process.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use casemate_confine::objects::{self, Handle, Held, Object};
use casemate_label::{Context, LabelClass, Profile, VerifiedProc};
use casemate_sys::path::{self, OFlags};
use casemate_sys::process::pidfd_open;
use casemate_sys::procfs::Proc;
use casemate_sys::rustix;
use casemate_wire::record::{ProcessName, SandboxRecord};

use super::super::attack::last_disk;
use super::table::Thing;
use crate::error::StepFailed;
use crate::store::{CONTROL, VSOCK};

const STEP: &str = "set the stage";

/// One object, and what is known of it.
#[derive(Debug, Default)]
pub struct Entry {
    pub name: Option<Handle>,
    pub fd: Option<OwnedFd>,
    /// Of the object itself; of the node, for a socket at a path.
    pub label: Option<Context>,
    /// Of the socket.
    pub socket: Option<Context>,
    /// Of the process that it belongs to.
    pub process: Option<Context>,
    /// Of whoever opened the descriptor.
    pub opener: Option<Context>,
    /// The class of its inode; `None` for an inode that the kernel keeps private.
    pub class: Option<&'static str>,
    /// Another user's process: root needs CAP_KILL to signal it.
    pub foreign: bool,
    /// The permissions that the descriptor's mode stands for (`file_to_av`).
    pub perms: Vec<&'static str>,
}

impl Entry {
    pub fn copy(&self) -> Result<Entry, StepFailed> {
        let fd = self.fd.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Entry {
            name: self.name.clone(),
            fd: fd.map_err(|e| StepFailed::stage(STEP, e))?,
            label: self.label.clone(),
            socket: self.socket.clone(),
            process: self.process.clone(),
            opener: self.opener.clone(),
            class: self.class,
            foreign: self.foreign,
            perms: self.perms.clone(),
        })
    }
}

/// What one sandbox brings to the trial.
#[derive(Default)]
pub struct Side {
    pub entries: BTreeMap<Thing, Entry>,
    /// Why an object is missing.
    pub missing: BTreeMap<Thing, String>,
    held: Vec<Held>,
}

/// The label that a path's own inode carries.
pub fn label_at(path: &Path) -> Option<Context> {
    let mut buffer = [0; 4096];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut buffer).ok()?;
    Context::from_bytes(buffer.get(..length)?).ok()
}

fn label_of(fd: &OwnedFd) -> Option<Context> {
    let mut buffer = [0; 4096];
    let length = rustix::fs::fgetxattr(fd, "security.selinux", &mut buffer).ok()?;
    Context::from_bytes(buffer.get(..length)?).ok()
}

fn label_of_process(pid: i32) -> Option<Context> {
    VerifiedProc::open_host().ok()?.label_of(u32::try_from(pid).ok()?).ok()
}

fn perms_of(fd: &OwnedFd) -> Vec<&'static str> {
    let Ok(flags) = rustix::fs::fcntl_getfl(fd) else { return Vec::new() };
    let mut perms = Vec::new();
    if !flags.contains(OFlags::WRONLY) {
        perms.push("read");
    }
    if flags.intersects(OFlags::RDWR | OFlags::WRONLY) {
        perms.push(if flags.contains(OFlags::APPEND) { "append" } else { "write" });
    }
    perms
}

fn class_of(thing: Thing) -> Option<&'static str> {
    match thing {
        Thing::Of(Object::BlockDevice) => Some("blk_file"),
        Thing::Of(Object::Directory) => Some("dir"),
        Thing::Of(Object::Fifo) => Some("fifo_file"),
        Thing::Of(Object::Connection) => Some("unix_stream_socket"),
        Thing::Of(Object::Tap) => Some("chr_file"),
        Thing::Of(Object::Uring | Object::Userfault) => Some("anon_inode"),
        Thing::Of(Object::Event | Object::Vm | Object::Vcpu) => None,
        _ => Some("file"),
    }
}

/// Completes what is known of an object of `maker`'s. Where the kernel does not tell a label, it is the maker's: that
/// is how it labels IPC, keys, taps and sockets of a process that asks for nothing else.
fn entry(thing: Thing, name: Option<Handle>, fd: Option<OwnedFd>, maker: Option<&Context>) -> Entry {
    let by_maker = || maker.cloned();
    let told = fd.as_ref().and_then(label_of);
    let at_path = match &name {
        Some(Handle::Path(path)) => label_at(path.as_ref()),
        _ => None,
    };
    let is_socket =
        matches!(thing, Thing::Of(Object::Stream | Object::Datagram | Object::Abstract | Object::Connection));
    Entry {
        label: at_path.or_else(|| told.clone()).or_else(by_maker),
        // A tap's own label is its maker's; the node /dev/net/tun, which the descriptor shows, is the host's.
        socket: match thing {
            Thing::Of(Object::Tap) => by_maker(),
            _ if is_socket => told.or_else(by_maker),
            _ => None,
        },
        process: if thing == Thing::Of(Object::Process) { by_maker() } else { None },
        opener: by_maker(),
        class: class_of(thing),
        foreign: false,
        perms: fd.as_ref().map(perms_of).unwrap_or_default(),
        name,
        fd,
    }
}

impl Side {
    /// Adds what a maker with this label made.
    pub fn add(&mut self, object: Object, name: Option<Handle>, fd: Option<OwnedFd>, maker: Option<&Context>) {
        let thing = Thing::Of(object);
        self.entries.insert(thing, entry(thing, name, fd, maker));
    }

    /// The sandbox's own objects, and made ones beside them. `lent`: those of a maker in its level, for the classes whose
    /// label cannot be asked for.
    pub fn of(
        record: &SandboxRecord,
        dir: &Path,
        place: &Path,
        mark: &str,
        lent: Option<&Side>,
    ) -> Result<Side, StepFailed> {
        let mut side = Side::default();
        let label = record.label.as_deref().map(str::parse::<Context>).transpose();
        let label = label.map_err(|e| StepFailed::stage(STEP, e))?;
        for object in Object::ALL {
            side.make(object, label.as_ref(), place, mark, lent)?;
        }
        side.real_files(record, dir);
        side.real_processes(record, label.as_ref())?;
        Ok(side)
    }

    fn make(
        &mut self,
        object: Object,
        label: Option<&Context>,
        place: &Path,
        mark: &str,
        lent: Option<&Side>,
    ) -> Result<(), StepFailed> {
        let thing = Thing::Of(object);
        let asked = matches!(
            object,
            Object::File
                | Object::BlockDevice
                | Object::Directory
                | Object::Fifo
                | Object::Stream
                | Object::Datagram
                | Object::Abstract
                | Object::Connection
                | Object::Memfd
                | Object::SharedFile
                | Object::Key
        );
        if let (false, Some(lent)) = (asked, lent.and_then(|lent| lent.entries.get(&thing))) {
            self.entries.insert(thing, lent.copy()?);
            return Ok(());
        }
        let made = labelled(label.filter(|_| asked), || Ok(objects::make(object, place, mark)))?;
        match made {
            Ok(mut held) => {
                let own = label.and_then(|_| label_of_process(casemate_sys::process::own_pid()));
                let mut entry = entry(thing, held.name.clone(), held.fd.take(), own.as_ref());
                if let (Object::Key, Some(label)) = (object, label) {
                    entry.label = Some(label.clone());
                }
                // The maker holds a copy, for what dies with its last descriptor.
                held.fd = entry.fd.as_ref().and_then(|fd| fd.try_clone().ok());
                self.entries.insert(thing, entry);
                self.held.push(held);
            }
            Err(error) => {
                self.missing.insert(thing, error.to_string());
            }
        }
        Ok(())
    }

    fn real_files(&mut self, record: &SandboxRecord, dir: &Path) {
        let path = |path: &Path| Some(Handle::Path(path.display().to_string()));
        if let Some(disk) = last_disk(record).filter(|disk| !disk.read_only) {
            let entry = entry(Thing::Of(Object::File), path(disk.path.as_ref()), None, None);
            self.entries.insert(Thing::Of(Object::File), entry);
        }
        let log = dir.join("console-log.0");
        if log.exists() {
            self.entries.insert(Thing::Log, entry(Thing::Log, path(&log), None, None));
        }
        let warden = label_of_process(pid(record.warden));
        let runner = record.runner.and_then(|runner| label_of_process(pid(runner)));
        for (thing, file, socket) in [(Thing::Control, CONTROL, warden), (Thing::VsockSocket, VSOCK, runner)] {
            let file = dir.join(file);
            if !file.exists() {
                continue;
            }
            let mut entry = entry(thing, path(&file), None, None);
            entry.socket = socket;
            self.entries.insert(thing, entry);
        }
        // cgroup v2 ends every task of a group by one write to cgroup.kill; opening it does nothing.
        for group in &record.cgroups {
            let candidates = ["cgroup.kill", "cgroup.procs"].map(|file| Path::new(group).join(file));
            if let Some(file) = candidates.iter().find(|file| file.exists()) {
                self.entries.insert(Thing::Cgroup, entry(Thing::Cgroup, path(file), None, None));
            }
        }
    }

    /// The runner itself, and copies of its descriptors: those that only it and a thief can have.
    fn real_processes(&mut self, record: &SandboxRecord, label: Option<&Context>) -> Result<(), StepFailed> {
        let runner = record.runner.ok_or_else(|| StepFailed::because(STEP, "the record names no runner"))?;
        let runner = pid(runner);
        let label = label.and_then(|_| label_of_process(runner));
        let jailer = label.as_ref().and_then(|_| label_of_process(pid(record.warden)));
        let itself = Thing::Of(Object::Process);
        let process = entry(itself, Some(Handle::Number(runner)), None, label.as_ref());
        self.entries.insert(itself, Entry { foreign: true, ..process });
        let mem = Handle::Path(format!("/proc/{runner}/mem"));
        let memory =
            Entry { label: label.clone(), process: label.clone(), ..entry(Thing::Memory, Some(mem), None, None) };
        self.entries.insert(Thing::Memory, memory);
        let proc = Proc::host().map_err(|e| StepFailed::stage(STEP, e))?;
        for (number, link, fd) in descriptors(&proc, runner)? {
            let Some((thing, by_runner)) = self.known(&link, &fd) else { continue };
            let opener = if by_runner { label.as_ref() } else { jailer.as_ref() };
            let old = self.entries.get(&thing).and_then(|entry| entry.name.clone());
            let name = old.filter(|_| matches!(thing, Thing::Of(Object::File) | Thing::Log));
            let mut entry = entry(thing, name, Some(fd), opener);
            if thing == Thing::Plan {
                let path = Some(Handle::Path(format!("/proc/{runner}/fd/{number}")));
                let plan = Entry { name: path, label: entry.label.clone(), process: label.clone(), ..Entry::default() };
                self.entries.insert(Thing::PlanInProc, plan);
            }
            if thing == Thing::Of(Object::Connection) {
                entry.socket = entry.label.clone();
            }
            self.missing.remove(&thing);
            self.entries.insert(thing, entry);
        }
        Ok(())
    }

    /// Which object a descriptor of the runner is, and whether the runner opened it itself.
    fn known(&self, link: &str, fd: &OwnedFd) -> Option<(Thing, bool)> {
        let same = |thing: Thing| match self.entries.get(&thing).and_then(|entry| entry.name.as_ref()) {
            Some(Handle::Path(path)) => {
                let there = path::open_no_symlinks(path.as_ref(), OFlags::PATH).and_then(path::identity);
                let here = path::identity(fd);
                there.is_ok_and(|there| here.is_ok_and(|here| (there.dev, there.ino) == (here.dev, here.ino)))
            }
            _ => false,
        };
        match link {
            "anon_inode:kvm-vm" => Some((Thing::Of(Object::Vm), true)),
            "anon_inode:[eventfd]" => Some((Thing::Of(Object::Event), true)),
            _ if link.starts_with("anon_inode:kvm-vcpu") => Some((Thing::Of(Object::Vcpu), true)),
            _ if link.starts_with("/memfd:") && !self.entries.contains_key(&Thing::Plan) => Some((Thing::Plan, false)),
            // The warden's socket is the first of the table; the listener beside it is tried by its path.
            _ if link.starts_with("socket:") && self.replaceable(Thing::Of(Object::Connection)) => {
                Some((Thing::Of(Object::Connection), false))
            }
            _ if link.starts_with('/') => {
                [Thing::Of(Object::File), Thing::Log].into_iter().find(|thing| same(*thing)).map(|thing| (thing, false))
            }
            _ => None,
        }
    }

    /// Is it still the one that was made for the trial?
    fn replaceable(&self, thing: Thing) -> bool {
        let made = |fd: &OwnedFd| path::identity(fd).map(|is| is.ino).ok();
        let own = self.entries.get(&thing).and_then(|entry| entry.fd.as_ref()).and_then(made);
        self.held.iter().filter_map(|held| held.fd.as_ref()).any(|fd| made(fd) == own)
    }
}

fn pid(process: ProcessName) -> i32 {
    i32::try_from(process.pid).unwrap_or(-1)
}

/// Copies of a process's descriptors from 3 on, with their numbers and links.
fn descriptors(proc: &Proc, pid: i32) -> Result<Vec<(i32, String, OwnedFd)>, StepFailed> {
    let failed = |e: &dyn std::error::Error| StepFailed::because(STEP, crate::error::sentence(e));
    let pidfd = pidfd_open(pid).map_err(|e| failed(&e))?;
    let mut numbers: Vec<i32> =
        proc.list(&format!("{pid}/fd")).map_err(|e| failed(&e))?.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    let mut found = Vec::new();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        let link = proc.read_link(&format!("{pid}/fd/{number}")).map_err(|e| failed(&e))?;
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let fd = rustix::process::pidfd_getfd(&pidfd, number, flags);
        let fd = fd.map_err(|e| failed(&std::io::Error::from(e)))?;
        found.push((number, link, fd));
    }
    Ok(found)
}

/// Runs `make` so that what it makes carries the labels of this runner's objects.
fn labelled<T>(runner: Option<&Context>, make: impl FnOnce() -> Result<T, StepFailed>) -> Result<T, StepFailed> {
    let failed = |e: casemate_label::ProcError| StepFailed::stage("label an object of the trial", e);
    let Some(runner) = runner else { return make() };
    let proc = VerifiedProc::open_host().map_err(failed)?;
    let image = image_label(runner);
    proc.set_create_label(Some(&image)).map_err(failed)?;
    proc.set_socket_label(Some(runner)).map_err(failed)?;
    proc.set_key_label(Some(runner)).map_err(failed)?;
    let made = make();
    proc.set_create_label(None).map_err(failed)?;
    proc.set_socket_label(None).map_err(failed)?;
    proc.set_key_label(None).map_err(failed)?;
    made
}

/// The label of an image of the sandbox whose runner has this label.
fn image_label(runner: &Context) -> Context {
    let family = [Profile::casemate(), Profile::svirt()].into_iter().find(|profile| profile.runner == runner.type_());
    let level = runner.range().map_or(casemate_label::Level::S0, |range| *range.low());
    LabelClass::Exclusive.target(&family.unwrap_or_else(Profile::casemate), level)
}

/// A directory for what has a path, at the level that every sandbox reads.
pub fn place(path: &Path, selinux: bool) -> Result<(), StepFailed> {
    let shared = selinux.then(|| {
        let profile = Profile::casemate();
        profile.object(&profile.image, casemate_label::Range::single(casemate_label::Level::S0))
    });
    let proc = VerifiedProc::open_host().map_err(|e| StepFailed::stage(STEP, e))?;
    if shared.is_some() {
        proc.set_create_label(shared.as_ref()).map_err(|e| StepFailed::stage(STEP, e))?;
    }
    let made = std::fs::create_dir(path);
    if shared.is_some() {
        proc.set_create_label(None).map_err(|e| StepFailed::stage(STEP, e))?;
    }
    made.map_err(|e| StepFailed::stage(STEP, e))
}
