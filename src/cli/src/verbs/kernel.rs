//! `kernel`: the store of guest kernels.

use casemate_client::sanitize;
use casemate_image::{Kernel, KernelSource};
use serde::Serialize;

use crate::args::KernelImportArgs;
use crate::failure::{Failure, Result};
use crate::output::{Context, Tone, cell, say, size, table_text};
use crate::progress::Bar;
use crate::resolve;

#[derive(Serialize)]
struct Row {
    name: String,
    version: String,
    source: String,
    boot_image: String,
    pvh: bool,
    modules: usize,
    default: bool,
}

fn row(kernel: &Kernel, default: Option<&str>) -> Row {
    let manifest = &kernel.manifest;
    Row {
        name: manifest.name.clone(),
        version: sanitize::line(&manifest.version, 200),
        source: sanitize::line(&manifest.source, 200),
        boot_image: kernel.boot_image().display().to_string(),
        pvh: manifest.pvh,
        modules: manifest.modules.len(),
        default: default == Some(manifest.name.as_str()),
    }
}

pub fn import(context: &Context, args: &KernelImportArgs) -> Result<()> {
    let source = match (&args.file, args.host) {
        (_, true) => KernelSource::Host { release: None },
        (Some(file), false) => match KernelSource::from_path(file) {
            KernelSource::Image { path, .. } => KernelSource::Image { path, modules: args.modules.clone() },
            KernelSource::Deb { .. } if args.modules.is_some() => {
                return Err(Failure::new("--modules: a Debian package brings its own").remedy("leave it out"));
            }
            package => package,
        },
        (None, false) => return Err(Failure::new("no kernel is given").remedy("give a file, or --host")),
    };
    if let Some(file) = &args.file {
        std::fs::File::open(file).map_err(|e| Failure::io(format!("opening {}", file.display()), e))?;
    }
    let store = resolve::open(context)?;
    let mut bar = Bar::new(context);
    let kernel = store.import_kernel(&source, args.name.as_deref(), &mut |progress| bar.show(progress))?;
    drop(bar);
    if args.default {
        store.set_default_kernel(kernel.name())?;
    }
    let row = row(&kernel, store.default_name().as_deref());
    if context.json() {
        return context.print_json(&row);
    }
    let more = if row.default { ", the default" } else { "" };
    context.print(&format!("{} ({} modules{more})\n", row.name, row.modules))
}

pub fn list(context: &Context) -> Result<()> {
    let store = resolve::open(context)?;
    let default = store.default_name();
    let kernels = store.kernels()?;
    let rows: Vec<Row> = kernels.iter().map(|kernel| row(kernel, default.as_deref())).collect();
    if context.json() {
        return context.print_json(&rows);
    }
    if rows.is_empty() {
        say("no kernel yet: `casemate kernel import PACKAGE.deb`, or --host");
        return Ok(());
    }
    let mut table = context.table(&["NAME", "DEFAULT", "BOOTS AS", "SIZE", "MODULES", "SOURCE"]);
    for (row, kernel) in rows.iter().zip(&kernels) {
        let bytes = std::fs::metadata(kernel.boot_image()).map_or(0, |m| m.len());
        let boots = match (row.boot_image.ends_with("vmlinux"), row.pvh) {
            (true, true) => "ELF, PVH",
            (true, false) => "ELF",
            (false, _) => "bzImage",
        };
        table.add_row(vec![
            cell(&row.name, Tone::Head),
            cell(if row.default { "*" } else { "" }, Tone::Good),
            cell(boots, Tone::Plain),
            cell(size(bytes), Tone::Plain),
            cell(row.modules, Tone::Plain),
            cell(&row.source, Tone::Dim),
        ]);
    }
    context.print(&table_text(&table))
}

pub fn remove(context: &Context, names: &[String]) -> Result<()> {
    let store = resolve::open(context)?;
    for name in names {
        store.remove_kernel(name)?;
    }
    if context.json() {
        return context.print_json(&serde_json::json!({ "removed": names }));
    }
    context.print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())
}

pub fn default(context: &Context, name: &str) -> Result<()> {
    resolve::open(context)?.set_default_kernel(name)?;
    if context.json() {
        return context.print_json(&serde_json::json!({ "default": name }));
    }
    context.print(&format!("{name}\n"))
}
