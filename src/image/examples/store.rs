//! Makes what a guest boots from, without the rest of Casemate:
//! `store STATE KERNEL(.deb|image) AGENT ROOT(directory|tar) [MODULE...]` prints the paths of kernel, initramfs and root image.
use casemate_image::{Error, KernelSource, RootSource, Store, TarCompression};
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let mut next = |what: &str| arguments.next().ok_or(format!("missing argument: {what}"));
    let (state, kernel, agent, root) = (next("STATE")?, next("KERNEL")?, next("AGENT")?, next("ROOT")?);
    let extra: Vec<String> = arguments.map(|a| a.to_string_lossy().into_owned()).collect();
    let store = Store::open(state)?;
    let progress = |p| eprintln!("{p:?}");
    let source = KernelSource::from_path(&kernel);
    let kernel = match store.import_kernel(&source, None, &mut |_| {}) {
        Err(Error::KernelExists { name }) => store.kernel(Some(&name))?,
        other => other?,
    };
    let initramfs = store.initramfs(&kernel, &agent, &extra.iter().map(String::as_str).collect::<Vec<_>>())?;
    let compression = TarCompression::from_path(&root);
    let source = match compression {
        Some(compression) if root.is_file() => RootSource::Tar { path: root, compression },
        _ => RootSource::Directory { path: root },
    };
    let root = store.rootfs(&source, &mut |p| {
        if p.done == p.total {
            progress(p)
        }
    })?;
    println!("{}", kernel.boot_image().display());
    println!("{}", kernel.bzimage().unwrap_or_default().display());
    println!("{}", initramfs.path.display());
    println!("{}", root.path.display());
    eprintln!(
        "pvh: {}, modules: {:?}",
        kernel.manifest.pvh,
        kernel.manifest.modules.iter().map(|m| &m.name).collect::<Vec<_>>()
    );
    eprintln!("on demand: {:?}", kernel.manifest.on_demand.keys().collect::<Vec<_>>());
    Ok(())
}
