//! Negative cases first: each names the field that is at fault.

use super::*;
use crate::parse;

fn refused(text: &str) -> String {
    let file = parse::toml(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    match SandboxSpec::try_from(file) {
        Ok(spec) => panic!("accepted: {text}: {spec:?}"),
        Err(error) => error.field_path().to_owned(),
    }
}

const GOOD: &str = "command = ['true']\nroot = { dir = '/srv/root' }\n";

fn with(more: &str) -> String {
    format!("{more}\n{GOOD}")
}

#[test]
fn each_impossible_value_names_its_field() {
    for (more, field) in [
        ("version = 2", "version"),
        ("name = '../x'", "name"),
        ("hostname = 'a b'", "hostname"),
        ("cpus = 0", "cpus"),
        ("cpus = 65", "cpus"),
        ("memory = '0'", "memory"),
        ("memory = '32M'", "memory"),
        ("memory = '100000K'", "memory"),
        ("memory = '9999T'", "memory"),
        ("kernel = '/a/../b'", "kernel"),
        ("kernel = '../x'", "kernel"),
        ("initrd = 'relative'", "initrd"),
        ("cmdline = \"a\\nb\"", "cmdline"),
        ("vsock = false", "vsock"),
        ("timeout = '0s'", "timeout"),
        ("cwd = 'x'", "cwd"),
        ("user = 'a:b:c'", "user"),
        ("user = ''", "user"),
        ("allow_reduced = ' '", "allow_reduced"),
        ("env = { 'A=B' = 'x' }", "env.A=B"),
        ("env = { A = \"x\\u0000y\" }", "env.A"),
        ("detach = true\ntty = true", "detach"),
        ("limits = { pids = 1 }", "limits.pids"),
        ("limits = { log = '1' }", "limits.log"),
        ("limits = { cpu_percent = 0 }", "limits.cpu_percent"),
        ("limits = { memory_overhead = '1K' }", "limits.memory_overhead"),
        ("disks = [{ id = 'root', path = '/x', format = 'raw' }]", "disks[0].id"),
        ("disks = [{ id = 'A', path = '/x', format = 'raw' }]", "disks[0].id"),
        ("disks = [{ id = 'a', path = 'x', format = 'raw' }]", "disks[0].path"),
        ("disks = [{ id = 'a', path = '/x', format = 'raw', mount = '/m' }]", "disks[0].fstype"),
        ("disks = [{ id = 'a', path = '/x', format = 'raw', shared = true, read_only = true }]", "disks[0].shared"),
        (
            "disks = [{ id = 'a', path = '/x', format = 'raw' }, { id = 'b', path = '/x', format = 'raw' }]",
            "disks[1].path",
        ),
    ] {
        assert_eq!(refused(&with(more)), field, "{more}");
    }
}

#[test]
fn root_and_command_rules() {
    for (text, field) in [
        ("root = { dir = '/r' }", "command"),
        ("command = ['']\nroot = { dir = '/r' }", "command"),
        ("command = ['x']", "root"),
        ("command = ['x']\nroot = { dir = '/r', tar = '/t' }", "root"),
        ("command = ['x']\nroot = { image = '/r' }", "root.fstype"),
        ("command = ['x']\nroot = { dir = '/r', fstype = 'ext4' }", "root.fstype"),
        ("command = ['x']\nroot = { image = '/r', fstype = 'erofs', writable = true }", "root.writable"),
        ("command = ['x']\nroot = { dir = '/r', overlay = '1G' }", "root.overlay"),
        ("bare = true", "kernel"),
        ("bare = true\nkernel = '/k'\ncommand = ['x']", "command"),
    ] {
        assert_eq!(refused(text), field, "{text}");
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let spec = SandboxSpec::try_from(parse::toml(GOOD).unwrap()).unwrap();
    assert_eq!((spec.cpus().get(), spec.memory().bytes()), (1, 256 << 20));
    assert_eq!(spec.limits().pids, 17);
    assert!(spec.vsock() && !spec.detached() && spec.require().is_none());
    assert_eq!(spec.on_reboot(), RebootPolicy::Stop);
}

#[test]
fn the_wire_form_survives_a_round_trip() {
    let text = with("name = 'a'\ncpus = 2\nenv = { A = '1' }\ndisks = [{ id = 'd', path = '/x', format = 'raw' }]");
    let spec = SandboxSpec::try_from(parse::toml(&text).unwrap()).unwrap();
    let json = serde_json::to_vec(spec.file()).unwrap();
    assert_eq!(SandboxSpec::try_from(parse::json(&json).unwrap()).unwrap(), spec);
}

#[test]
fn the_checked_in_schema_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec.schema.json");
    let generated = parse::json_schema();
    if std::env::var_os("CASEMATE_BLESS").is_some() {
        std::fs::write(path, &generated).unwrap();
    }
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        checked_in == generated,
        "docs/spec.schema.json is stale; CASEMATE_BLESS=1 cargo test -p casemate-spec renews it"
    );
}
