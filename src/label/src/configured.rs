//! The policy that /etc/selinux/config names, against the one that is loaded.
//!
//! Labels of last resort (`fallback`) come from the named policy's file_contexts. Where another policy is loaded they
//! are another policy's labels: what such a host calls restored would not be.

use std::fs;
use std::path::Path;

use casemate_plan::Shortcoming;

use crate::context::Context;
use crate::selinuxfs::SelinuxFs;

const ETC: &str = "/etc/selinux";

pub fn problems(fs: &SelinuxFs) -> Option<Shortcoming> {
    judge(Path::new(ETC), &|context| fs.is_valid(context))
}

/// The value of `SELINUXTYPE=`, as libselinux reads it: the last assignment counts, and it names a directory.
fn selinuxtype(config: &str) -> Option<&str> {
    let value = config.lines().filter_map(|l| l.trim().strip_prefix("SELINUXTYPE=")).next_back()?.trim();
    (!value.is_empty() && !value.contains('/') && !value.starts_with('.')).then_some(value)
}

fn judge(etc: &Path, is_valid: &dyn Fn(&Context) -> bool) -> Option<Shortcoming> {
    let mismatch = |text: String| Shortcoming {
        code: "selinuxtype".into(),
        text,
        remedy: format!(
            "set SELINUXTYPE in {} to the policy in use, or reboot into the one it names",
            etc.join("config").display()
        ),
    };
    // A host without the file has libselinux' default; nothing is named, so nothing contradicts.
    let config = fs::read_to_string(etc.join("config")).ok()?;
    let name = selinuxtype(&config)?;
    let contexts = etc.join(name).join("contexts");
    if matches!(fs::metadata(&contexts), Err(e) if e.kind() == std::io::ErrorKind::NotFound) {
        return Some(mismatch(format!(
            "SELINUXTYPE={name} names a policy that is not installed: {} is missing",
            contexts.display()
        )));
    }
    let text = fs::read_to_string(contexts.join("initrc_context")).ok()?;
    let context: Context = text.lines().next()?.trim().parse().ok()?;
    (!is_valid(&context)).then(|| {
        mismatch(format!(
            "SELINUXTYPE={name}, but another policy is loaded: it does not know {context} of {}",
            contexts.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(config: &str, initrc: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config"), config).unwrap();
        if let Some(text) = initrc {
            fs::create_dir_all(dir.path().join("default/contexts")).unwrap();
            fs::write(dir.path().join("default/contexts/initrc_context"), text).unwrap();
        }
        dir
    }

    #[test]
    fn svirt_51_a_policy_named_but_not_loaded_is_told() {
        let knows = |c: &Context| c.type_() == "initrc_t" && c.range().is_some();
        let told = |config: &str, initrc| judge(host(config, initrc).path(), &knows).map(|s| s.text);
        let good = Some("system_u:system_r:initrc_t:s0\n");
        assert_eq!(told("SELINUX=enforcing\nSELINUXTYPE=default\n", good), None);
        assert_eq!(told("# SELINUXTYPE=mls\nSELINUXTYPE=default\n", good), None, "a comment");
        assert_eq!(told("", good), None, "nothing is named");
        let missing = told("SELINUXTYPE=mls\n", good).unwrap();
        assert!(missing.contains("SELINUXTYPE=mls") && missing.contains("not installed"), "{missing}");
        let other = told("SELINUXTYPE=default\n", Some("system_u:system_r:initrc_t\n")).unwrap();
        assert!(other.contains("another policy is loaded"), "{other}");
        assert_eq!(selinuxtype("SELINUXTYPE=../../x"), None);
        assert_eq!(selinuxtype("SELINUXTYPE=a\nSELINUXTYPE=b"), Some("b"));
    }
}
