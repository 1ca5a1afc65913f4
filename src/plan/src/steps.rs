//! The ordered steps of one start, and the descriptors that they give the runner. The order is the security argument;
//! `make` says which facts it rests on.

use casemate_spec::{Boot, Disk, SandboxSpec};

use crate::config::HostConfig;
use crate::facts::{CgroupFacts, HostFacts};
use crate::fds::{FdAccess, FdKind, FdSource, FdTable, names};
use crate::make::uses_selinux;
use crate::step::{Action, CgroupPlan, HugetlbLimit, ImageClass, LabelChoice, Layer, Namespace, Rlimit, Role, Step};

/// Builds the list. One method per stretch of the start.
pub(crate) struct Maker<'a> {
    spec: &'a SandboxSpec,
    facts: &'a HostFacts,
    config: &'a HostConfig,
    steps: Vec<Step>,
    fds: FdTable,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(spec: &'a SandboxSpec, facts: &'a HostFacts, config: &'a HostConfig) -> Self {
        Maker { spec, facts, config, steps: Vec::new(), fds: FdTable::default() }
    }

    pub(crate) fn make(mut self, rlimits: &[Rlimit]) -> (Vec<Step>, FdTable) {
        self.leases();
        self.files();
        self.made();
        self.child(rlimits);
        self.runner();
        self.proof();
        (self.steps, self.fds)
    }

    pub(crate) fn step(&mut self, role: Role, layer: Layer, action: Action, what: impl Into<String>, why: &str) {
        self.steps.push(Step { role, layer, action, what: what.into(), why: why.into(), undo: None });
    }

    fn undone_by(&mut self, undo: &str) {
        if let Some(step) = self.steps.last_mut() {
            step.undo = Some(undo.into());
        }
    }

    fn leases(&mut self) {
        use Role::Jailer;
        let run_dir = self.config.run_dir.display().to_string();
        let name = self.spec.name().map_or("a new name".into(), |n| format!("the name {n}"));
        self.step(
            Jailer,
            Layer::None,
            Action::ReserveName { run_dir: run_dir.clone() },
            format!("reserve {name} below {run_dir}/vms, open the journal"),
            "a directory is made or the start fails, so a name has one owner; every later change is written down first",
        );
        self.undone_by("the warden or `casemate repair` empties the directory; `casemate rm` removes it");
        let (first, last) = (self.config.uid_first, self.config.uid_last);
        self.step(
            Jailer,
            Layer::Uid,
            Action::LeaseUid { first, last },
            format!("lease a uid from {first}..={last}"),
            "two runners never share a uid, so the kernel's oldest check already keeps them apart",
        );
        self.undone_by("release the lease");
        if uses_selinux(self.facts) {
            self.level();
            self.undone_by("release the lease");
        }
    }

    fn level(&mut self) {
        let asked = self.spec.selinux();
        let Some(level) = &asked.level else {
            return self.step(
                Role::Jailer,
                Layer::Selinux,
                Action::LeaseMcs,
                "lease a pair of MCS categories, c1 < c2, that no running process or image has",
                "the pair is the whole difference between two guests for SELinux",
            );
        };
        let level = level.as_str().to_owned();
        let (what, why) = if asked.level_shared {
            (format!("reserve the level {level} together with its group"), "asked for: sandboxes of one group share it")
        } else {
            (format!("reserve the level {level}"), "a level that a user fixed is kept free of others, or refused")
        };
        let action = Action::LeaseLevel { level, shared: asked.level_shared };
        self.step(Role::Jailer, Layer::Selinux, action, what, why);
    }

    pub(crate) fn open(&mut self, fd: String, path: String, kind: FdKind, access: FdAccess, why: &str) {
        self.fds.push(fd.clone(), kind, access, FdSource::Path(path.clone()));
        let what =
            format!("open {path} as '{fd}', {}", if access == FdAccess::ReadOnly { "read-only" } else { "read-write" });
        self.step(Role::Jailer, Layer::Fds, Action::OpenFile { fd, path, kind, access }, what, why);
    }

    fn files(&mut self) {
        const NO_NAME: &str = "opened once, without symlinks, and checked; from here on only the descriptor is used";
        self.fds.push(names::PLAN, FdKind::SealedMemfd, FdAccess::ReadOnly, FdSource::Made);
        self.fds.push(names::WARDEN, FdKind::SeqpacketSocket, FdAccess::ReadWrite, FdSource::Made);
        let kvm = "the runner opens nothing, /dev/kvm included";
        self.open(names::KVM.into(), "/dev/kvm".into(), FdKind::CharDevice, FdAccess::ReadWrite, kvm);
        let (kernel, initrd) = match self.spec.boot() {
            Boot::Agent { kernel, initrd, .. } => {
                let kernel = kernel.clone().unwrap_or_else(|| "(the default kernel)".into());
                let initrd = initrd.as_ref().map_or_else(|| "(the agent's initramfs)".into(), |p| p.to_string());
                (kernel, Some(initrd))
            }
            Boot::Bare { kernel, initrd } => (kernel.to_string(), initrd.as_ref().map(|p| p.to_string())),
        };
        self.open(names::KERNEL.into(), kernel, FdKind::RegularFile, FdAccess::ReadOnly, NO_NAME);
        self.relabel(names::KERNEL.into(), ImageClass::Content, self.default_choice());
        if let Some(initrd) = initrd {
            self.open(names::INITRD.into(), initrd, FdKind::RegularFile, FdAccess::ReadOnly, NO_NAME);
            self.relabel(names::INITRD.into(), ImageClass::Content, self.default_choice());
        }
        if let Boot::Agent { root, .. } = self.spec.boot() {
            self.root(root);
        }
        for (at, disk) in self.spec.disks().iter().enumerate() {
            self.disk(disk, self.choice(at, disk));
        }
    }

    /// Whose labels are left alone unless the object itself says otherwise.
    pub(crate) fn default_choice(&self) -> LabelChoice {
        match self.spec.selinux().relabel {
            true => LabelChoice::OfClass,
            false => LabelChoice::Keep { field: "selinux.relabel".into() },
        }
    }

    /// svirt.md 21: the disk's own `relabel = false`, the disk's label, the sandbox's choice, the class.
    fn choice(&self, at: usize, disk: &Disk) -> LabelChoice {
        match (disk.label.relabel, &disk.label.label) {
            (Some(false), _) => LabelChoice::Keep { field: format!("disks[{at}].relabel") },
            (_, Some(label)) => {
                LabelChoice::Given { label: label.as_str().into(), field: format!("disks[{at}].label") }
            }
            (Some(true), None) => LabelChoice::OfClass,
            (None, None) => self.default_choice(),
        }
    }

    pub(crate) fn relabel(&mut self, fd: String, class: ImageClass, choice: LabelChoice) {
        if !uses_selinux(self.facts) {
            return;
        }
        let family = self.facts.selinux.family.as_ref();
        let (image, content) =
            family.map_or(("casemate_image_t", "casemate_content_t"), |f| (f.image.as_str(), f.content.as_str()));
        let (label, why) = match class {
            ImageClass::Exclusive => (format!("{image} with the pair"), "only this VM's runner may touch it"),
            ImageClass::Shared => (format!("{image}:s0"), "shared on request: every runner may write to it"),
            ImageClass::Content => (format!("{content}:s0"), "every runner may read it, none may write to it"),
        };
        let judged = "the loaded policy must let this runner use it, and no other where it is this VM's alone";
        let (what, why, changes) = match &choice {
            LabelChoice::OfClass => (format!("label '{fd}' {label}"), why, true),
            LabelChoice::Given { label, field } => (format!("label '{fd}' {label} ({field})"), judged, true),
            LabelChoice::Keep { field } => (format!("check the label that '{fd}' carries ({field})"), judged, false),
        };
        self.step(Role::Jailer, Layer::Selinux, Action::Relabel { fd, class, choice }, what, why);
        if changes && class == ImageClass::Exclusive {
            self.undone_by("restore the remembered label after the runner is reaped");
        }
    }

    fn made(&mut self) {
        use Role::Jailer;
        let bytes = self.spec.limits().log.bytes();
        for name in names::CONSOLE_LOG.into_iter().chain(names::OUTPUT_LOG) {
            self.fds.push(name, FdKind::RegularFile, FdAccess::ReadWrite, FdSource::Made);
        }
        self.step(
            Jailer,
            Layer::Fds,
            Action::CreateLogs { bytes },
            format!("make console and output logs of {bytes} bytes each"),
            "a guest must not fill the host's disk: a log is two files of half the size, used in turn",
        );
        if matches!(self.spec.boot(), Boot::Agent { .. }) {
            self.fds.push(names::GUEST_CONFIG, FdKind::SealedMemfd, FdAccess::ReadOnly, FdSource::Made);
        }
        if self.spec.vsock() {
            self.fds.push(names::VSOCK, FdKind::StreamListener, FdAccess::ReadWrite, FdSource::Made);
        }
        self.step(
            Jailer,
            Layer::Fds,
            Action::CreateSockets,
            "make the warden's socket pair, the control socket and the vsock socket",
            "the runner creates no socket of its own; what listens on the host is root's alone",
        );
        if let Some(page) = self.spec.hugepages() {
            self.fds.push(names::MEMORY, FdKind::SizedMemfd, FdAccess::ReadWrite, FdSource::Made);
            let (bytes, memory) = (self.spec.memory().bytes(), self.spec.memory());
            self.step(
                Jailer,
                Layer::Fds,
                Action::CreateMemory { bytes, page: page.bytes() },
                format!("make the guest's memory: {memory} of {page} pages, size sealed, labelled with the pair"),
                "the runner makes no file; a memory that is a file needs a label of its own, or every runner could map it",
            );
        }
        if !matches!(self.facts.cgroup, CgroupFacts::None) {
            let plan = self.cgroup();
            let what = format!(
                "make the cgroup: {} bytes of memory, {} tasks{}",
                plan.memory,
                plan.pids,
                cpu_text(plan.cpu_percent)
            );
            self.step(
                Jailer,
                Layer::Cgroup,
                Action::CreateCgroup(plan),
                what,
                "a guest's load is bounded before it exists",
            );
            self.undone_by("kill what is left in it, remove it");
        }
    }

    fn cgroup(&self) -> CgroupPlan {
        let limits = self.spec.limits();
        CgroupPlan {
            layout: self.facts.cgroup.clone(),
            parent: self.config.cgroup_parent.clone(),
            cpu_percent: limits.cpu_percent,
            memory: self.spec.memory().bytes().saturating_add(limits.memory_overhead.bytes()),
            pids: limits.pids,
            hugetlb: self.hugetlb(),
        }
    }

    /// What is asked for of one size of huge pages, and nothing of the other.
    fn hugetlb(&self) -> Vec<HugetlbLimit> {
        let offered = match &self.facts.cgroup {
            CgroupFacts::V2 { controllers, .. } => controllers.iter().any(|c| c == "hugetlb"),
            CgroupFacts::V1 { controllers } => controllers.contains_key("hugetlb"),
            CgroupFacts::None => false,
        };
        let page = self.spec.hugepages().filter(|_| offered);
        let memory = self.spec.memory().bytes();
        page.map(|page| HugetlbLimit { page: page.bytes(), bytes: memory }).into_iter().collect()
    }

    fn child(&mut self, rlimits: &[Rlimit]) {
        use Namespace::{Cgroup, Ipc, Mount, Net, Pid, Uts};
        let into_cgroup = matches!(self.facts.cgroup, CgroupFacts::V2 { .. });
        let namespaces = vec![Mount, Pid, Net, Ipc, Uts, Cgroup];
        self.step(
            Role::Jailer,
            Layer::Namespaces,
            Action::CloneRunner { namespaces, into_cgroup },
            "clone3 a child into new mount, pid, net, ipc, uts and cgroup namespaces",
            "born there, in the cgroup on v2: nothing to move later. No user namespace: the runner keeps no capability \
             in any, and a real uid of its own is what SELinux, DAC and the image's owner can see",
        );
        self.undone_by("kill and reap it by its pidfd");
        let child = Role::Child;
        if matches!(self.facts.cgroup, CgroupFacts::V1 { .. }) {
            self.step(
                child,
                Layer::Cgroup,
                Action::JoinCgroup,
                "join the v1 cgroups",
                "v1 has no clone into a cgroup; a single thread that moves itself takes no global lock",
            );
        }
        self.step(
            child,
            Layer::Mounts,
            Action::EmptyRoot,
            "pivot into an empty, read-only root",
            "no path leads anywhere; before Landlock, which forbids mounting",
        );
        let limits = rlimits.to_vec();
        self.step(
            child,
            Layer::Rlimits,
            Action::SetRlimits { limits },
            "set rlimits, soft and hard",
            "no core dump, no locked memory, few descriptors and tasks",
        );
        if uses_selinux(self.facts) {
            self.step(child, Layer::Selinux, Action::SetExecLabel, "set the exec label through a verified procfs and read it back", "before Landlock, which refuses the write; a fake procfs would drop the label silently (CVE-2025-52881)");
        }
        if self.facts.landlock_abi > 0 {
            let abi = self.facts.landlock_abi;
            self.step(
                child,
                Layer::Landlock,
                Action::RestrictLandlock { abi },
                format!("Landlock ABI {abi}: deny all but executing the runner"),
                "without NNP, which needs CAP_SYS_ADMIN: NNP would refuse the SELinux transition at exec",
            );
        }
        if self.facts.seccomp {
            self.step(
                child,
                Layer::Seccomp,
                Action::InstallExecFilter,
                "install the coarse seccomp filter",
                "while CAP_SYS_ADMIN stands in for NNP; it allows what the remaining steps and the runner's start need",
            );
        }
        self.step(
            child,
            Layer::Capabilities,
            Action::DropBoundingSet,
            "empty the capability bounding set, lock securebits",
            "needs CAP_SETPCAP, so before it goes",
        );
        self.step(
            child,
            Layer::Uid,
            Action::DropGroups,
            "drop all supplementary groups",
            "needs CAP_SETGID, so before the gid",
        );
        self.step(
            child,
            Layer::Uid,
            Action::SetGid,
            "set real, effective and saved gid",
            "before the uid, which ends the right to do it",
        );
        self.step(child, Layer::Uid, Action::SetUid, "set real, effective and saved uid", "root is gone from here on");
        self.step(
            child,
            Layer::Capabilities,
            Action::DropCapabilities,
            "empty all capability sets",
            "none is needed, none is inheritable, none is ambient",
        );
        self.step(
            child,
            Layer::Fds,
            Action::ArrangeFds,
            format!("put {} descriptors at 3 to {}, close the rest", self.fds.len(), self.fds.len() + 2),
            "nothing leaks through an exec (CVE-2024-21626)",
        );
        self.step(
            child,
            Layer::None,
            Action::ExecRunner,
            "exec the runner with an empty environment",
            "one shared read-only file, entered by descriptor; the SELinux transition happens here",
        );
    }

    fn runner(&mut self) {
        let runner = Role::Runner;
        self.step(
            runner,
            Layer::Fds,
            Action::CheckFds,
            "compare every descriptor with the plan",
            "SELinux replaces a forbidden one by the null device: a runner must notice",
        );
        self.step(
            runner,
            Layer::Seccomp,
            Action::SetNoNewPrivs,
            "set no_new_privs",
            "the transition is done, so nothing may change privileges again",
        );
        if self.facts.landlock_abi > 0 {
            let abi = self.facts.landlock_abi;
            self.step(
                runner,
                Layer::Landlock,
                Action::RestrictLandlockFully { abi },
                "Landlock again: deny the exec too",
                "the second narrowing has no exception",
            );
        }
        self.step(
            runner,
            Layer::None,
            Action::CreateVm,
            "create the VM, load the kernel, start the threads stopped",
            "set-up rights are wider than run rights",
        );
        if self.facts.seccomp {
            self.step(
                runner,
                Layer::Seccomp,
                Action::InstallThreadFilters,
                "install one seccomp filter per thread: main, vcpu, io",
                "a vCPU thread, which runs the guest, needs least",
            );
        }
    }

    fn proof(&mut self) {
        let none = Layer::None;
        self.step(
            Role::Runner,
            none,
            Action::AttestInside,
            "attest from inside: label, NNP, seccomp, capabilities, Landlock, uid, descriptors",
            "with negative controls: a layer that does not deny is not there",
        );
        if self.facts.seccomp {
            self.step(
                Role::Warden,
                Layer::Seccomp,
                Action::NarrowWarden,
                "install the warden's seccomp filter",
                "it keeps root's rights to give the host back at the end, and talks to a runner that may be hostile: \
                 no exec, no new process, no network",
            );
        }
        self.step(
            Role::Warden,
            none,
            Action::AttestOutside,
            "attest from outside: the same through /proc, for every thread, and the namespaces",
            "a runner's word alone is not a proof",
        );
        self.step(Role::Warden, none, Action::Go, "let the vCPUs run", "only when both agree with this plan");
    }
}

fn cpu_text(percent: Option<u32>) -> String {
    percent.map_or(String::new(), |p| format!(", {p} % of a CPU"))
}
