//! Starts `casemate-jailer`: `run` with its two descriptors, every other verb for the JSON it prints.
//!
//! A terminal's Ctrl-C is to reach this program alone, which then decides: `run` begins a session of its own (so it may not
//! lead a group before), the other verbs get a process group. They take nothing else of ours: stdin is /dev/null.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use casemate_spec::wire::SpecFile;
use casemate_wire::jailer::Event;
use casemate_wire::{Channel, ChannelError};
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::dirs::{self, Dirs};
use crate::error::{Attempt, Error, Result};
use crate::label;
use crate::sanitize;
use crate::wait;

/// Most bytes of JSON that a verb may print, and of stderr that is repeated.
const MAX_ANSWER: u64 = 64 << 20;
const MAX_STDERR: u64 = 16 << 10;
/// How long an aborted start may take to undo itself.
const ABORT: Duration = Duration::from_secs(15);

#[derive(Debug, Clone)]
pub struct Jailer {
    program: PathBuf,
    dirs: Dirs,
}

/// A started jailer, and later the warden: the same process.
#[derive(Debug)]
pub struct Launch {
    child: Child,
    channel: Channel,
    /// Where the jailer writes what it cannot send. A pipe would break under it when this program ends, and a terminal
    /// would show the complaints of a start that the user has aborted.
    stderr: File,
}

/// What a verb printed, and whether it exited with 0.
#[derive(Debug)]
pub struct Answer {
    pub json: serde_json::Value,
    pub ok: bool,
}

impl Jailer {
    pub fn locate(dirs: &Dirs) -> Result<Jailer> {
        Ok(Jailer { program: dirs::program("casemate-jailer")?, dirs: dirs.clone() })
    }

    fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(verb).arg("--run-dir").arg(&self.dirs.run).arg("--state-dir").arg(&self.dirs.state);
        // The jailer takes nothing from the environment, and the warden would keep the caller's, secrets included, as
        // long as the VM lives.
        command.env_clear().stdin(Stdio::null());
        command
    }

    /// Starts a sandbox. What becomes of it comes as [`Event`]s.
    pub fn run(&self, spec: &SpecFile) -> Result<Launch> {
        let mut command = self.command(&["run"]);
        let (channel, stderr) = give(&mut command, spec)?;
        command.stdout(Stdio::null());
        command.stderr(stderr.try_clone().attempt(|| "duplicating a descriptor".into())?);
        let child = command.spawn().attempt(|| format!("starting {}", self.program.display()))?;
        Ok(Launch { child, channel, stderr })
    }

    /// Runs another verb to its end and reads the JSON that it prints.
    pub fn ask(&self, verb: &[&str], spec: Option<&SpecFile>) -> Result<Answer> {
        self.ask_by(Command::spawn, verb, spec)
    }

    /// The same, with these bytes on its standard input.
    pub fn tell(&self, verb: &[&str], input: &[u8]) -> Result<Answer> {
        let what = || "passing what is to be sealed".to_owned();
        let mut file = memory_file("casemate-input")?;
        file.write_all(input).and_then(|()| file.rewind()).attempt(what)?;
        let spawn = |command: &mut Command| command.stdin(file).spawn();
        self.ask_by(spawn, verb, None)
    }

    /// The same, in the caller's SELinux domain: for trials of the layers that are not SELinux.
    pub fn ask_in_own_domain(&self, verb: &[&str]) -> Result<Answer> {
        self.ask_by(|command| label::in_own_domain(|| command.spawn()), verb, None)
    }

    fn ask_by(
        &self,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
        verb: &[&str],
        spec: Option<&SpecFile>,
    ) -> Result<Answer> {
        let mut args = verb.to_vec();
        args.push("--json");
        // As the user knows it.
        let named = verb.iter().take_while(|word| !word.starts_with("--")).copied().collect::<Vec<_>>().join(" ");
        let mut command = self.command(&args);
        command.process_group(0);
        let _channel = spec.map(|spec| give(&mut command, spec)).transpose()?;
        // Its stderr is kept back: a failure is told once, by this program.
        let mut stderr = memory_file("casemate-stderr")?;
        command.stderr(stderr.try_clone().attempt(|| "duplicating a descriptor".into())?);
        command.stdout(Stdio::piped());
        let mut child = spawn(&mut command).attempt(|| format!("starting {}", self.program.display()))?;
        let mut out = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            let reading = || format!("reading what the jailer says of '{named}'");
            pipe.take(MAX_ANSWER).read_to_end(&mut out).attempt(reading)?;
        }
        let status = child.wait().attempt(|| "waiting for the jailer".into())?;
        // A verb with nothing to tell prints nothing.
        if status.success() && out.iter().all(u8::is_ascii_whitespace) {
            return Ok(Answer { json: serde_json::Value::Null, ok: true });
        }
        match serde_json::from_slice(&out) {
            Ok(json) => Ok(Answer { json, ok: status.success() }),
            Err(_) => {
                let said = written(&mut stderr);
                let said = if said.is_empty() { status.to_string() } else { said };
                Err(Error::Verb { verb: named, said })
            }
        }
    }
}

/// Gives descriptors 3 and 4. Returns our end of the socket, and an empty file for stderr.
fn give(command: &mut Command, spec: &SpecFile) -> Result<(Channel, File)> {
    let (channel, theirs) = Channel::pair().attempt(|| "making a socket pair".into())?;
    let mappings =
        vec![FdMapping { parent_fd: theirs, child_fd: 3 }, FdMapping { parent_fd: sealed(spec)?, child_fd: 4 }];
    command.fd_mappings(mappings).map_err(|e| Error::Jailer(e.to_string()))?;
    Ok((channel, memory_file("casemate-stderr")?))
}

fn memory_file(name: &str) -> Result<File> {
    memfd_create(name, MemfdFlags::CLOEXEC).map(File::from).attempt(|| "making a memory file".into())
}

/// The specification in a memfd that nobody can change any more.
fn sealed(spec: &SpecFile) -> Result<OwnedFd> {
    let what = || "passing the specification".to_owned();
    let json = serde_json::to_vec(spec).map_err(std::io::Error::from).attempt(what)?;
    let fd = memfd_create("casemate-spec", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).attempt(what)?;
    let mut file = File::from(fd);
    file.write_all(&json).attempt(what)?;
    file.rewind().attempt(what)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals).attempt(what)?;
    Ok(file.into())
}

fn written(stderr: &mut File) -> String {
    let mut text = Vec::new();
    if stderr.rewind().is_ok() {
        let _ = stderr.take(MAX_STDERR).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let text = text.trim().strip_prefix("casemate-jailer: ").unwrap_or(text.trim());
    sanitize::line(text, MAX_STDERR as usize)
}

impl Launch {
    /// The socket to poll for events.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Blocks for the next event.
    pub fn event(&mut self) -> Result<Event> {
        match self.channel.receive() {
            Ok(event) => Ok(event),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// The event that waits, if there is one.
    pub fn try_event(&mut self) -> Result<Option<Event>> {
        match self.channel.try_receive() {
            Ok(event) => Ok(Some(event)),
            Err(ChannelError::WouldBlock) => Ok(None),
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn lost(&mut self, error: &ChannelError) -> Error {
        if let ChannelError::Codec(error) = error {
            return Error::Version(error.to_string());
        }
        let status = wait::child(&mut self.child, Duration::from_secs(2)).ok().flatten();
        let how = match status {
            Some(status) => format!("ended without a word ({status})"),
            None => format!("cannot be heard: {error}"),
        };
        match written(&mut self.stderr) {
            said if said.is_empty() => Error::Jailer(how),
            said => Error::Jailer(format!("{how}: {said}")),
        }
    }

    /// Hangs up, which ends a foreground sandbox, and waits until the jailer has undone everything.
    /// False if it has not ended in time.
    pub fn abort(mut self) -> bool {
        let _ = rustix::net::shutdown(self.channel.as_fd(), rustix::net::Shutdown::Both);
        matches!(wait::child(&mut self.child, ABORT), Ok(Some(_)))
    }

    /// Waits for the end of the process, after its last event. What it wrote on its stderr meanwhile, as one line.
    pub fn finish(mut self) -> Option<String> {
        let _ = wait::child(&mut self.child, ABORT);
        Some(written(&mut self.stderr)).filter(|said| !said.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(script: &str) -> (tempfile::TempDir, Jailer) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("jailer");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, Jailer { program, dirs: Dirs::default() })
    }

    #[test]
    fn the_specification_arrives_sealed_on_descriptor_4() {
        let (_dir, jailer) = fake("cat <&4; echo x 2>/dev/null >&4 && exit 9; exit 0");
        let spec = SpecFile { version: 1, name: Some("a".into()), ..SpecFile::default() };
        let answer = jailer.ask(&["plan"], Some(&spec)).unwrap();
        assert!(answer.ok);
        assert_eq!(answer.json["name"], "a");
    }

    #[test]
    fn a_jailer_that_dies_is_told_with_its_words() {
        let (_dir, jailer) = fake("echo 'casemate-jailer: no \x1b[31mway' >&2; exit 3");
        let error = jailer.ask(&["facts"], None).unwrap_err().to_string();
        assert!(error.contains("no ^[[31mway"), "{error}");
        let spec = SpecFile { version: 1, detach: true, ..SpecFile::default() };
        let error = jailer.run(&spec).unwrap().event().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no ^[[31mway"), "{error}");
    }

    #[test]
    fn an_aborted_start_waits_for_the_jailer() {
        let (_dir, jailer) = fake("cat <&3 >/dev/null; exit 0");
        let spec = SpecFile { version: 1, ..SpecFile::default() };
        assert!(jailer.run(&spec).unwrap().abort());
    }
}
