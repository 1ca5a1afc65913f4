//! The guest's agent behind a real runner (real filters, virtio-vsock): `agent_in_rig KERNEL INITRAMFS ROOT.erofs [PARAMETER...]`.
//! Attaches, executes beside the workload, copies in and out, ends the workload, and prints what came when.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use casemate_agent_protocol::{
    AGENT_PORT, Attach, Bytes, ClientSession, CopyFormat, ExecRequest, FromAgent, GuestConfig, ToAgent, WinSize,
};
use casemate_tests::rig::{Rig, Running};
use casemate_wire::runner::ToRunner;
use libtest_mimic::Failed;

const BOOT: Duration = Duration::from_secs(120);

struct Session {
    stream: UnixStream,
    client: ClientSession,
}

impl Session {
    /// Connects as a client does, again and again while the guest boots.
    fn open(vm: &Running, request: &ToAgent) -> Result<Session, Failed> {
        let deadline = Instant::now() + BOOT;
        loop {
            let mut stream = vm.connect()?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            writeln!(stream, "CONNECT {AGENT_PORT}")?;
            let mut answer = Vec::new();
            let mut byte = [0];
            while !answer.ends_with(b"\n") && stream.read(&mut byte)? == 1 {
                answer.push(byte[0]);
            }
            if answer.starts_with(b"OK ") {
                let (client, wire) = ClientSession::open(request)?;
                stream.write_all(&wire)?;
                return Ok(Session { stream, client });
            }
            if Instant::now() > deadline {
                return Err("the agent does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn send(&mut self, message: &ToAgent) -> Result<(), Failed> {
        let wire = self.client.send(message)?;
        Ok(self.stream.write_all(&wire)?)
    }

    /// To its end: output, and the last message.
    fn finish(&mut self) -> Result<(String, FromAgent), Failed> {
        let mut output = Vec::new();
        while !self.client.is_over() {
            match self.client.recv(&mut self.stream)? {
                FromAgent::Stdout(Bytes(bytes)) | FromAgent::Stderr(Bytes(bytes)) | FromAgent::Data(Bytes(bytes)) => {
                    output.extend(bytes);
                }
                last if self.client.is_over() => return Ok((String::from_utf8_lossy(&output).into_owned(), last)),
                _ => {}
            }
        }
        Err("the session ended without a last message".into())
    }
}

fn shell(script: &str) -> ExecRequest {
    ExecRequest::new(["/bin/sh", "-c", script].map(String::from).to_vec())
}

fn sessions(vm: &Running, begin: Instant) -> Result<(), Failed> {
    let mut ping = Session::open(vm, &ToAgent::Ping { token: 1 })?;
    while ping.client.recv(&mut ping.stream)? != (FromAgent::Pong { token: 1 }) {}
    println!("first answer after {:?}", begin.elapsed());
    let mut workload = Session::open(vm, &ToAgent::Attach { size: None })?;
    while !matches!(workload.client.recv(&mut workload.stream)?, FromAgent::Started { .. }) {}
    println!("workload started after {:?}", begin.elapsed());
    let one = Instant::now();
    println!("exec: {:?} in {:?}", Session::open(vm, &ToAgent::Exec(shell("id; uname -r")))?.finish()?, one.elapsed());
    let size = Some(WinSize { rows: 11, cols: 22 });
    let tty = ExecRequest { tty: size, ..shell("stty size; tty; exit 9") };
    println!("tty: {:?}", Session::open(vm, &ToAgent::Exec(tty))?.finish()?);
    let missing = ExecRequest::new(vec!["none".into()]);
    println!("missing: {:?}", Session::open(vm, &ToAgent::Exec(missing))?.finish()?);
    let one = Instant::now();
    let (bulk, end) = Session::open(vm, &ToAgent::Exec(shell("head -c 4000000 /dev/zero")))?.finish()?;
    println!("4 MB out: {} bytes, {end:?}, in {:?}", bulk.len(), one.elapsed());
    let format = CopyFormat::File { mode: 0o600, uid: 0, gid: 0 };
    let mut copy = Session::open(vm, &ToAgent::CopyIn { path: "/tmp/in".into(), format })?;
    for _ in 0..40 {
        copy.send(&ToAgent::Data(Bytes(vec![b'c'; 25_000])))?;
    }
    copy.send(&ToAgent::DataEof)?;
    println!("copy in: {:?}", copy.finish()?.1);
    let (tar, end) = Session::open(vm, &ToAgent::CopyOut { path: "/tmp/in".into() })?.finish()?;
    println!("copy out: {} bytes of tar, {end:?}", tar.len());
    workload.send(&ToAgent::Stdin(Bytes(b"to the workload\n".to_vec())))?;
    workload.send(&ToAgent::StdinEof)?;
    println!("workload: {:?}", workload.finish()?);
    Ok(())
}

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kernel, initramfs, root, more @ ..] = &args[..] else {
        return Err("agent_in_rig KERNEL INITRAMFS ROOT".into());
    };
    let mut config = GuestConfig::new(["/bin/sh", "-c", "echo begin; cat; exit 7"].map(String::from).to_vec());
    (config.stdin, config.attach) = (true, Attach::Wait { timeout_ms: 60_000 });
    let rig = Rig::new(std::fs::read(kernel)?)
        .initrd(&std::fs::read(initramfs)?, &config.to_json()?)?
        .disk_file("root", File::open(root)?, true)
        .vsock()?
        .with(|vm| {
            (vm.console, vm.rng, vm.memory) = (true, true, 256 << 20);
            (vm.agent, vm.boot_timeout_ms) = (true, 120_000);
            vm.cmdline = format!("console=ttyS0 reboot=t panic=-1 pci=off {}", more.join(" "));
            vm.log_bytes = 1 << 20;
        });
    let begin = Instant::now();
    let mut vm = rig.start()?;
    vm.tell(ToRunner::Go)?;
    let talked = sessions(&vm, begin);
    let end = vm.end_within(BOOT);
    println!("news: {:?}\nend: {end:?} after {:?}", vm.news, begin.elapsed());
    println!("console: {}", String::from_utf8_lossy(&vm.console()?));
    talked
}
