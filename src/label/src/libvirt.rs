//! Labels of libvirt's guests, from its own files: those that run, those that are only starting, and the static ones,
//! which libvirt itself never reserves (`ReserveLabel` returns 0 for them).
//!
//! Trust: root's files, parsed as hostile text (no DTD, bounded size and number of nodes). Of a document only
//! `<seclabel model='selinux'>` with its `<label>` and `<imagelabel>` counts, of the domain and of each device;
//! `<baselabel>` names no level. Format: <https://libvirt.org/formatdomain.html#security-label>.

use std::path::Path;

use roxmltree::{Document, Node, ParsingOptions};

use crate::context::Context;
use crate::in_use::{Holder, InUse};
use crate::managers;

/// Status of what runs, then what is defined.
pub const PLACES: [&str; 4] = ["/run/libvirt/qemu", "/run/libvirt/lxc", "/etc/libvirt/qemu", "/etc/libvirt/lxc"];
const MAX_FILE: u64 = 4 << 20;
const MAX_NODES: u32 = 100_000;

pub(crate) fn scan(dir: &Path, in_use: &mut InUse) {
    managers::each_file(dir, ".xml", MAX_FILE, in_use, |path, bytes, in_use| {
        // the name of an element cannot be written in another way, and most definitions have none
        if !bytes.windows(9).any(|w| w == b"<seclabel") {
            return Ok(());
        }
        let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options).map_err(|e| e.to_string())?;
        let name = document.descendants().find(|n| n.has_tag_name("name")).and_then(|n| n.text());
        let name = name.map(managers::plain).unwrap_or_default();
        for label in document.descendants().filter_map(label) {
            let parsed: Context = label.trim().parse().map_err(|e| format!("{e}"))?;
            in_use.add(parsed, Holder::Manager { manager: "libvirt", name: name.clone(), file: path.into() });
        }
        Ok(())
    });
}

/// The text of a label element that SELinux is meant by; a seclabel without a model is of the host's first.
fn label<'a>(node: Node<'a, 'a>) -> Option<&'a str> {
    let parent = node.parent().filter(|p| p.has_tag_name("seclabel"))?;
    let selinux = parent.attribute("model").is_none_or(|model| model == "selinux");
    let is_label = node.has_tag_name("label") || node.has_tag_name("imagelabel");
    node.text().filter(|text| selinux && is_label && text.contains(':'))
}
