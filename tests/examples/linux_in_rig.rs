//! Boots a Linux kernel in the rig (real runner, real filters), all devices present: `linux_in_rig KERNEL INITRD [CPUS]`,
//! with RESTART in the environment a reboot starts the guest again.
//! Prints the serial log, what the virtio console got, the first sector of the writable disk and the end.

use std::time::{Duration, Instant};

use casemate_tests::rig::Rig;
use casemate_wire::runner::ToRunner;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kernel, initrd, cpus @ ..] = &args[..] else { return Err("linux_in_rig KERNEL INITRD [CPUS]".into()) };
    let cpus = cpus.first().map_or(Ok(1), |n| n.parse())?;
    let mut content = vec![0x5a; 8 << 20];
    content[..16].copy_from_slice(b"disk of the host");
    let rig = Rig::new(std::fs::read(kernel)?)
        .initrd(&std::fs::read(initrd)?, b"{\"argv\":[\"true\"]}")
        .map_err(|e| format!("{e:?}"))?
        .disk("root", &content, true)?
        .disk("data", &[0; 1 << 20], false)?
        .vsock()?;
    let rig = rig.with(|vm| {
        (vm.console, vm.rng, vm.memory, vm.cpus) = (true, true, 256 << 20, cpus);
        vm.cmdline = "console=ttyS0 reboot=k panic=-1 quiet pci=off".into();
        vm.log_bytes = 1 << 20;
        vm.restart_on_reboot = std::env::var_os("RESTART").is_some();
    });
    let begin = Instant::now();
    let mut vm = rig.start().map_err(|e| format!("{e:?}"))?;
    println!("attested after {:?}", begin.elapsed());
    vm.tell(ToRunner::Go).map_err(|e| format!("{e:?}"))?;
    let end = vm.end_within(Duration::from_secs(120)).map_err(|e| format!("{e:?}"));
    println!("{}", String::from_utf8_lossy(&vm.console()?));
    println!("output: {}", String::from_utf8_lossy(&vm.output()?));
    println!("data disk: {}", String::from_utf8_lossy(&vm.disk(1)?[..16]));
    println!("{end:?} after {:?}", begin.elapsed());
    Ok(())
}
