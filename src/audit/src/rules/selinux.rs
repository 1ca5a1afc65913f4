//! SELinux: what the policy answers for two VMs (`separation`), what labels they bear (`labels`), and whether the host
//! enforces.

mod labels;
mod separation;

use super::common::ALL_OF_A_VM;
use crate::policy::ask::HARMFUL;
use crate::rule::{Check, Initial, Parameter, Rule, Scope, Severity};
use crate::subject::{Kind, Known, Subject};

const ASKED: &[Kind] = &[Kind::Policy, Kind::Plan, Kind::Vm];
const LAYER: &str = "selinux";

/// Domains that must touch VMs by their office; every other is named by the rules.
const ENTRIES: &[&str] = &["casemate_jailer_t", "virtd_t", "container_runtime_t", "container_engine_t"];

pub static RULES: &[Rule] = &[
    Rule {
        id: "selinux.present",
        title: "the host has SELinux",
        layer: LAYER,
        threat: "without mandatory access control, a runner that a guest took over is kept from other VMs by uid, namespaces, Landlock and seccomp alone",
        severity: Severity::Low,
        remedy: "boot with security=selinux and a policy with MCS; casemate policy install",
        kinds: &[Kind::Plan, Kind::Vm, Kind::Host],
        parameters: &[],
        check: present,
    },
    Rule {
        id: "selinux.enforcing",
        title: "SELinux enforces",
        layer: LAYER,
        threat: "permissive SELinux logs what an attacker does and refuses nothing, while everything looks labelled",
        severity: Severity::Critical,
        remedy: "setenforce 1, and SELINUX=enforcing in /etc/selinux/config",
        kinds: &[Kind::Plan, Kind::Vm, Kind::Host],
        parameters: &[],
        check: enforcing,
    },
    Rule {
        id: "selinux.domain-enforced",
        title: "the VMs' domain is not permissive",
        layer: LAYER,
        threat: "a permissive domain is refused nothing although the host enforces",
        severity: Severity::Critical,
        remedy: "semanage permissive -d the domain",
        kinds: ASKED,
        parameters: &[],
        check: separation::domain_enforced,
    },
    Rule {
        id: "selinux.no-reach",
        title: "a VM cannot use another VM's objects",
        layer: LAYER,
        threat: "a VM whose type categories do not constrain reads, writes, maps, traces or signals another VM's image or process",
        severity: Severity::Critical,
        remedy: "constrain the types by MCS (typeattributeset mcs_constrained_type), or use the module of Casemate",
        kinds: ASKED,
        parameters: &[Parameter {
            name: "harmful",
            what: "permissions that count as use of another VM's object; the rest is judged by selinux.no-rest",
            default: Initial::Words(&HARMFUL),
        }],
        check: separation::no_reach,
    },
    Rule {
        id: "selinux.no-rest",
        title: "nothing else is left open between two VMs",
        layer: LAYER,
        threat: "what a policy leaves open between two VMs (getattr, search, socket options) tells one of the other and grows with the next rule",
        severity: Severity::Low,
        remedy: "constrain the classes that are named (selinux.mcs-covers), or allow what is wanted in the profile",
        kinds: ASKED,
        parameters: &[Parameter {
            name: "allowed",
            what: "`object class:permission` that may be left open, as `image file:getattr`",
            default: Initial::Words(&[]),
        }],
        check: separation::no_rest,
    },
    Rule {
        id: "selinux.mcs-covers",
        title: "categories hold back the classes that two VMs have in common",
        layer: LAYER,
        threat: "where a policy's MCS does not name a class, one allow rule more opens it between all VMs",
        severity: Severity::Medium,
        remedy: "add mlsconstrain rules for the classes that are named, as policies/casemate_mcs.cil does",
        kinds: ASKED,
        parameters: &[Parameter {
            name: "classes",
            what: "classes that must be held back by categories",
            default: Initial::Words(&[
                "file",
                "chr_file",
                "blk_file",
                "fifo_file",
                "sock_file",
                "dir",
                "lnk_file",
                "process",
            ]),
        }],
        check: separation::mcs_covers,
    },
    Rule {
        id: "selinux.no-flows",
        title: "no object carries information from one VM's level to another's",
        layer: LAYER,
        threat: "what one VM may write and another may read joins two tenants in two steps",
        severity: Severity::Medium,
        remedy: "take the permission from the runner's type (deny rules of the module), or allow the object in the profile with a reason",
        kinds: ASKED,
        parameters: &[Parameter {
            name: "allowed",
            what: "objects that may carry it, as `TYPE:LEVEL CLASS`; images shared on request are at s0, these devices keep nothing that is written, and no guest's memory and no runner is ever at s0",
            default: Initial::Words(&[
                "casemate_image_t:s0 file",
                "casemate_image_t:s0 blk_file",
                "null_device_t:s0 chr_file",
                "kvm_device_t:s0 chr_file",
                "casemate_memory_t:s0 file",
                "casemate_runner_t:s0 unix_stream_socket",
            ]),
        }],
        check: separation::no_flows,
    },
    Rule {
        id: "selinux.entries",
        title: "only those who start VMs can become one",
        layer: LAYER,
        threat: "another domain that can enter the VMs' domain runs its program with a VM's rights",
        severity: Severity::High,
        remedy: "remove the transition, or name the domain in `allowed` if it starts VMs by its office",
        kinds: ASKED,
        parameters: &[Parameter {
            name: "allowed",
            what: "domains that may become a VM",
            default: Initial::Words(ENTRIES),
        }],
        check: separation::entries,
    },
    Rule {
        id: "selinux.others",
        title: "only domains that are known may write, relabel, trace or signal a VM",
        layer: LAYER,
        threat: "a service that was taken over changes a VM's image or reads its memory",
        // A distribution's unconfined domains are its own design: told, and raised in the profile by whoever wants them gone.
        severity: Severity::Info,
        remedy: "take the right from the domain, or name it in `allowed` if it needs it by its office",
        kinds: ASKED,
        parameters: &[
            Parameter {
                name: "deeds",
                what: "permissions that are looked for",
                default: Initial::Words(&[
                    "write",
                    "append",
                    "relabelfrom",
                    "relabelto",
                    "ptrace",
                    "transition",
                    "dyntransition",
                ]),
            },
            Parameter {
                name: "allowed",
                what: "domains that may",
                default: Initial::Words(&[
                    "casemate_jailer_t",
                    "casemate_warden_t",
                    "virtd_t",
                    "virtlogd_t",
                    "container_runtime_t",
                    "container_engine_t",
                    "init_t",
                    "kernel_t",
                    "unconfined_t",
                    "sysadm_t",
                    "setfiles_t",
                    "restorecond_t",
                ]),
            },
        ],
        check: separation::others,
    },
    Rule {
        id: "selinux.booleans",
        title: "no boolean widens what a VM may do",
        layer: LAYER,
        threat: "a boolean that is on lets every VM's domain do more than its module says",
        severity: Severity::Medium,
        remedy: "setsebool -P NAME off, or name it in `allowed` with the profile's reason",
        kinds: ASKED,
        parameters: &[Parameter {
            name: "allowed",
            what: "booleans that may be as they are",
            default: Initial::Words(&[]),
        }],
        check: separation::booleans,
    },
    Rule {
        id: "selinux.two-categories",
        title: "the VM's level is one pair of categories",
        layer: LAYER,
        threat: "one category alone is a part of another VM's pair, and so within its reach (CVE-2021-3631)",
        severity: Severity::Critical,
        remedy: "start the VM again without a fixed level; casemate repair frees what is left",
        kinds: ALL_OF_A_VM,
        parameters: &[],
        check: labels::two_categories,
    },
    Rule {
        id: "selinux.level-exclusive",
        title: "no other VM has this VM's level",
        layer: LAYER,
        threat: "two VMs with one level are one VM to SELinux",
        severity: Severity::Critical,
        remedy: "stop one of the two; casemate labels --check shows who has the level",
        kinds: ALL_OF_A_VM,
        parameters: &[],
        check: labels::level_exclusive,
    },
    Rule {
        id: "selinux.process-label",
        title: "the process has a VM's type",
        layer: LAYER,
        threat: "a VM in a manager's or an unconfined domain has that domain's rights once its process is taken over",
        severity: Severity::High,
        remedy: "start it by casemate, or with the manager's SELinux support on (security_driver, --security-opt)",
        kinds: &[Kind::Plan, Kind::Vm, Kind::Process],
        parameters: &[Parameter {
            name: "types",
            what: "types that a VM's process may have",
            default: Initial::Words(&["casemate_runner_t", "svirt_t", "container_kvm_t"]),
        }],
        check: labels::process_label,
    },
    Rule {
        id: "selinux.object-labels",
        title: "the VM's objects are labelled as planned",
        layer: LAYER,
        threat: "an image with another label is open to other VMs, or to every domain of the host",
        severity: Severity::High,
        remedy: "stop the VM and start it again; casemate labels FILE says who else labelled it",
        kinds: &[Kind::Vm],
        parameters: &[],
        check: labels::object_labels,
    },
];

/// The word for a pair that a plan leaves to the lease.
pub const LEASED: &str = "(leased pair)";

/// Why a plan's separation is unseen where nobody named a policy: the facts that it was planned with speak for it.
pub const NO_POLICY: &str = "no policy was named (--policy FILE): the plan's posture says what its facts say of it";

fn present(subject: &Subject, _: &Scope) -> Vec<Check> {
    let expected = "SELinux is there";
    vec![match &subject.host {
        Known::Seen(host) => Check::judged(host.selinux != "disabled", "the host", expected, host.selinux.clone()),
        Known::Unseen(why) => Check::unknown("the host", expected, why.clone()),
    }]
}

fn enforcing(subject: &Subject, _: &Scope) -> Vec<Check> {
    vec![match &subject.host {
        Known::Seen(host) if host.selinux == "disabled" => {
            Check::inapplicable("the host", "it has no SELinux (selinux.present)")
        }
        Known::Seen(host) => Check::judged(host.selinux == "enforcing", "the host", "enforcing", host.selinux.clone()),
        Known::Unseen(why) => Check::unknown("the host", "enforcing", why.clone()),
    }]
}
