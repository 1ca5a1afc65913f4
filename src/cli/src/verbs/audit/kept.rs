//! `audit report`: a report that was kept as JSON, told again in another form. It may be anybody's: every form escapes it.

use std::io::Read;
use std::path::Path;

use casemate_audit::report::{Report, VERSION};
use casemate_client::sanitize;

use crate::audit_args::AuditReportArgs;
use crate::failure::{Failure, Result};
use crate::output::Context;

/// Two hundred VMs take some 30 MiB.
const LARGEST: u64 = 512 << 20;

pub fn report(context: &Context, args: &AuditReportArgs) -> Result<u8> {
    super::output::writable(context, args.output.as_deref())?;
    let report = read(&args.file)?;
    super::output::put(context, args.output.as_deref(), &report)
}

fn read(path: &Path) -> Result<Report> {
    let name = sanitize::line(&path.display().to_string(), 200);
    let failed = |error| Failure::io(format!("reading {name}"), error);
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST {
        return Err(Failure::new(format!("{name}: larger than {LARGEST} bytes")));
    }
    let remedy = "give a file that `casemate audit … --format json -o FILE` has written";
    let value: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(format!("{name}: not JSON: {error}")).remedy(remedy))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            let message = format!("{name}: a report of version {version}, and this casemate reads version {VERSION}");
            return Err(Failure::new(message).remedy("use the casemate that made it"));
        }
        None => return Err(Failure::new(format!("{name}: no report of an audit")).remedy(remedy)),
    }
    serde_json::from_value(value).map_err(|error| {
        Failure::new(format!("{name}: not a whole report: {}", sanitize::line(&error.to_string(), 400))).remedy(remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        let directory = std::env::temp_dir().join(format!("casemate-kept-{}-{}", std::process::id(), text.len()));
        std::fs::write(&directory, text).unwrap();
        let result = read(&directory);
        std::fs::remove_file(&directory).unwrap();
        result.map_or_else(|failure| failure.sentence(), |report| format!("read {}", report.host))
    }

    #[test]
    fn what_is_no_report_is_named() {
        assert!(said("not json").contains("not JSON"));
        assert!(said("{}").contains("no report of an audit"));
        assert!(said("{\"version\": 99}").contains("version 99"));
        assert!(said("{\"version\": 1, \"time\": 1}").contains("not a whole report: missing field"));
        let whole = r#"{"version":1,"time":1,"host":"h","profile":"p","subjects":[],"findings":[],"waived":[],
            "matrix":{"vms":[],"cells":[],"common":0,"pairs":[]}}"#;
        assert_eq!(said(whole), "read h");
    }
}
