//! Would an exec end in the runner's domain? Asked before it is tried, and again to explain one that failed.
//!
//! The kernel answers an exec that SELinux refuses with a bare EACCES or EPERM, whatever the reason
//! (`security/selinux/hooks.c`, `selinux_bprm_creds_for_exec`, `check_nnp_nosuid`). The reasons are each a question
//! that the policy can be asked, so each gets its own sentence and remedy here.
//! Called by `mode` (facts for plan and doctor) and by the jailer when its child's exec has failed.

use std::io;
use std::os::fd::BorrowedFd;

use casemate_plan::Shortcoming;
use rustix::fs::StatVfsMountFlags;

use crate::context::{Context, Level};
use crate::profile::Profile;
use crate::selinuxfs::SelinuxFs;

const XATTR: &str = "security.selinux";
const JAILER_EXEC: &str = "casemate_jailer_exec_t";

/// The two questions; a fake answers them in tests.
pub(crate) trait Policy {
    fn is_valid(&self, context: &Context) -> bool;
    fn allows(&self, subject: &Context, object: &Context, class: &str, perm: &str) -> io::Result<bool>;
    fn capability(&self, name: &str) -> bool;
}

impl Policy for SelinuxFs {
    fn is_valid(&self, context: &Context) -> bool {
        SelinuxFs::is_valid(self, context)
    }
    fn allows(&self, subject: &Context, object: &Context, class: &str, perm: &str) -> io::Result<bool> {
        SelinuxFs::allows(self, subject, object, class, perm)
    }
    fn capability(&self, name: &str) -> bool {
        SelinuxFs::capability(self, name)
    }
}

/// What of the process and its files decides over the transition.
#[derive(Debug, Clone)]
pub(crate) struct Situation {
    pub own: Context,
    /// The jailer's own program: label and place.
    pub jailer_file: Option<(Context, String)>,
    pub jailer_nosuid: bool,
    /// The runner's program.
    pub program: Option<Context>,
    pub noexec: bool,
    pub no_new_privs: bool,
}

/// Everything that stands between this process and a runner in its domain; empty when nothing does.
pub fn obstacles(fs: &SelinuxFs, profile: &Profile, own: &Context, program: BorrowedFd<'_>) -> Vec<Shortcoming> {
    judge(fs, profile, &Situation::of_self(own, program))
}

impl Situation {
    fn of_self(own: &Context, program: BorrowedFd<'_>) -> Self {
        let exe = std::env::current_exe().ok();
        let jailer_file = exe.as_ref().and_then(|exe| {
            let mut raw = vec![0; 4096];
            let n = rustix::fs::lgetxattr(exe, XATTR, raw.as_mut_slice()).ok()?;
            Some((Context::from_bytes(&raw[..n]).ok()?, exe.display().to_string()))
        });
        let flags = |vfs: rustix::io::Result<rustix::fs::StatVfs>| vfs.map_or(StatVfsMountFlags::empty(), |v| v.f_flag);
        Self {
            own: own.clone(),
            jailer_file,
            jailer_nosuid: exe.is_some_and(|e| flags(rustix::fs::statvfs(&e)).contains(StatVfsMountFlags::NOSUID)),
            program: label_of(program),
            noexec: flags(rustix::fs::fstatvfs(program)).contains(StatVfsMountFlags::NOEXEC),
            no_new_privs: rustix::thread::no_new_privs().unwrap_or(false),
        }
    }
}

fn label_of(program: BorrowedFd<'_>) -> Option<Context> {
    let mut raw = vec![0; 4096];
    let n = rustix::fs::fgetxattr(program, XATTR, raw.as_mut_slice()).ok()?;
    Context::from_bytes(&raw[..n]).ok()
}

fn told(code: &str, text: String, remedy: impl Into<String>) -> Shortcoming {
    Shortcoming { code: code.into(), text, remedy: remedy.into() }
}

pub(crate) fn judge(policy: &dyn Policy, profile: &Profile, now: &Situation) -> Vec<Shortcoming> {
    let runner = profile.runner_label(&now.own, sample());
    if !policy.is_valid(&runner) {
        return vec![invalid_under(policy, profile, Some(&now.own), &runner)];
    }
    // From the wrong domain every answer below would be about that domain.
    if let Some(entered) = jailer_domain(profile, now) {
        return vec![entered];
    }
    let mut all = Vec::new();
    if now.noexec {
        let text =
            "casemate-runner lies on a file system mounted noexec: the kernel executes nothing from there".to_owned();
        all.push(told("noexec", text, "mount it without noexec, or install Casemate elsewhere"));
    }
    all.extend(program(policy, profile, now, &runner));
    let process = Process { policy, now, runner: &runner };
    all.extend(process.rights(profile));
    all
}

/// A level that some sandbox may have.
fn sample() -> Level {
    "s0:c1,c2".parse().expect("a level")
}

/// The jailer is where its profile wants it, or why it is not.
fn jailer_domain(profile: &Profile, now: &Situation) -> Option<Shortcoming> {
    let wanted = profile.jailer.as_deref().filter(|wanted| *wanted != now.own.type_())?;
    let own = now.own.type_();
    if let Some((label, path)) = now.jailer_file.as_ref().filter(|(label, _)| label.type_() != JAILER_EXEC) {
        let text = format!(
            "the jailer runs as {own} and not as {wanted}: its program {path} is labelled {}, and only {JAILER_EXEC} leads there",
            label.type_()
        );
        return Some(told("jailer-file", text, format!("restorecon -v {path}")));
    }
    if now.no_new_privs {
        let text = format!(
            "the jailer runs as {own} and not as {wanted}: no_new_privs was set when it was started, so it stayed in its caller's domain"
        );
        return Some(told("jailer-nnp", text, "start it without no_new_privs (NoNewPrivileges=no in the unit)"));
    }
    if now.jailer_nosuid {
        let text = format!(
            "the jailer runs as {own} and not as {wanted}: its program lies on a file system mounted nosuid, where no domain is entered"
        );
        return Some(told("jailer-nosuid", text, "mount it without nosuid, or install Casemate elsewhere"));
    }
    let text = format!("the jailer runs as {own} and not as {wanted}: the policy does not let {own} start sandboxes");
    let remedy = format!(
        "start from an administrator's or a service's domain, or load (typeattributeset casemate_caller ({own}))"
    );
    Some(told("caller", text, remedy))
}

/// The program's label: may it be executed, and does it lead into the domain?
fn program(policy: &dyn Policy, profile: &Profile, now: &Situation, runner: &Context) -> Option<Shortcoming> {
    let Some(label) = &now.program else {
        let text = "the label of casemate-runner cannot be read".to_owned();
        return Some(told("program-label", text, "restorecon -v the file; its file system must know labels"));
    };
    let wanted = profile.runner_exec.as_deref().unwrap_or("a type that the policy names");
    let file = |subject: &Context, perm: &str| policy.allows(subject, label, "file", perm).unwrap_or(false);
    if !file(runner, "entrypoint") {
        let text = format!(
            "casemate-runner is labelled {}, which is no entry point of {}; {wanted} is",
            label.type_(),
            runner.type_()
        );
        let remedy =
            "restorecon -v the file: a copy takes the label of its new place, and only known places have a rule";
        return Some(told("entrypoint", text, remedy));
    }
    if !file(&now.own, "execute") || !file(runner, "execute") {
        let text = format!("the policy does not let {} execute {}", now.own.type_(), label.type_());
        return Some(told("execute", text, "`casemate policy install`"));
    }
    None
}

struct Process<'a> {
    policy: &'a dyn Policy,
    now: &'a Situation,
    runner: &'a Context,
}

impl Process<'_> {
    fn may(&self, class: &str, perm: &str) -> bool {
        self.policy.allows(&self.now.own, self.runner, class, perm).unwrap_or(false)
    }

    fn rights(&self, profile: &Profile) -> Vec<Shortcoming> {
        let (own, runner) = (self.now.own.type_(), self.runner.type_());
        let install = "`casemate policy install`, or another module took the rule away (`semodule -l`)";
        let mut all = Vec::new();
        if !self.policy.allows(&self.now.own, &self.now.own, "process", "setexec").unwrap_or(false) {
            all.push(told(
                "setexec",
                format!("the policy does not let {own} choose the label of an exec (setexec)"),
                install,
            ));
        }
        if !self.may("process", "transition") {
            let text = format!("the policy has no transition from {own} to {runner}");
            all.push(told("transition", text, format!("{install}; profile {}", profile.name)));
        }
        // The exec is by a descriptor of another mount namespace, which the kernel takes for a nosuid mount
        // (fs/namespace.c, mnt_may_suid); no_new_privs may come from the caller.
        let kinds = [(true, "nosuid_transition", "nosuid"), (self.now.no_new_privs, "nnp_transition", "no_new_privs")];
        for (_, perm, name) in kinds.into_iter().filter(|(needed, ..)| *needed) {
            if !self.policy.capability("nnp_nosuid_transition") {
                let text = format!(
                    "the loaded policy is older than transitions under {name} (no capability nnp_nosuid_transition)"
                );
                all.push(told(name, text, "update the base policy"));
            } else if !self.may("process2", perm) {
                let text =
                    format!("an exec under {name} may not leave {own} for {runner}: the policy lacks process2 {perm}");
                all.push(told(name, text, install));
            }
        }
        if !self.policy.allows(self.runner, &self.now.own, "fd", "use").unwrap_or(false) {
            let text = format!("{runner} may not use descriptors of {own}: the kernel would close all of them at exec");
            all.push(told("fd-use", text, install));
        }
        all
    }
}

/// Why the policy does not take a runner's label, part by part.
pub(crate) fn invalid(fs: &SelinuxFs, profile: &Profile, own: Option<&Context>, runner: &Context) -> Shortcoming {
    invalid_under(fs, profile, own, runner)
}

fn invalid_under(policy: &dyn Policy, profile: &Profile, own: Option<&Context>, runner: &Context) -> Shortcoming {
    let (user, role, type_) = (runner.user(), runner.role(), runner.type_());
    let object = Context::new(user, "object_r", &profile.image, runner.range().copied());
    let level = runner.range().map(ToString::to_string).unwrap_or_default();
    // The caller's own label is valid: what it shares with the runner's is not at fault.
    let caller_at_level = own.map(|own| match runner.range() {
        Some(range) => own.with_level(*range.high()),
        None => own.clone(),
    });
    if caller_at_level.is_some_and(|c| !policy.is_valid(&c)) || object.is_ok_and(|o| !policy.is_valid(&o)) {
        let text = format!("the user {user} may not have the level {level}: the label {runner} is not valid");
        return told("user-range", text, format!("widen the user's range: semanage user -m -r s0-s0:c0.c1023 {user}"));
    }
    let text = format!("the role {role} may not have the type {type_}: the label {runner} is not valid");
    let remedy = format!("start as a system service, or allow the role: (roletype {role} {type_})");
    told("role", text, remedy)
}

#[cfg(test)]
#[path = "transition_tests.rs"]
mod tests;
