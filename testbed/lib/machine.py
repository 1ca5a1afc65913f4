"""A living L1: QEMU, the keeper process that watches over it, and its state on disk.

    starting --READY on the serial line, ssh master up--> ready --down | idle | limit | parent gone--> ended
        \\------------- QEMU ended or no READY in time ------------------------------------------------/

The keeper (a daemon forked by `up`) holds the instance's lock as long as it lives, so a
free lock means that nothing runs, whatever the files say. Its directory, inst/NAME:
    lock        held by the keeper              state.json  pid, port, phase, why it ended
    activity    shared lock while a verb uses L1; its mtime is the last use
    ssh.ctl     ssh's multiplexing socket       serial.log, qemu.log, keeper.log
Callers: cli, remote.
"""
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import traceback

from . import image, kernel
from .common import HOME, Failure, locked, say

READY = "CASEMATE-L1-READY"
BOOT_LIMIT = 240                    # seconds; a loaded machine needs several times the usual 7
DEFAULT_IDLE = 60                   # minutes


class Instance:
    def __init__(self, name):
        if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
            raise Failure(f"{name!r} is no instance name: letters, digits, - _ . only")
        self.name = name
        self.dir = HOME / "inst" / name

    def state(self):
        try:
            return json.loads((self.dir / "state.json").read_text())
        except (OSError, ValueError):
            return {}

    def write_state(self, **changes):
        merged = {**self.state(), **changes}
        fresh = self.dir / f"state.json.{os.getpid()}"
        fresh.write_text(json.dumps(merged, indent=1) + "\n")
        fresh.replace(self.dir / "state.json")

    def alive(self):
        try:
            with open(self.dir / "lock") as f:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def ready(self):
        return self.alive() and self.state().get("phase") == "ready"

    @contextlib.contextmanager
    def in_use(self):
        """Keeps the idle clock at zero while a verb works with L1."""
        path = self.dir / "activity"
        with open(path, "a") as f:
            fcntl.flock(f, fcntl.LOCK_SH)
            os.utime(path)
            yield
            os.utime(path)

    def tail(self, name, lines=15):
        try:
            return "\n".join((self.dir / name).read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def instances():
    base = HOME / "inst"
    return [Instance(d.name) for d in sorted(base.iterdir()) if d.is_dir()] if base.is_dir() else []


def tsc_khz():
    """L1's TSC is this machine's: telling it spares the calibration. 0 = unknown."""
    done = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if "tsc: Detected" in line and "MHz" in line:
            return int(float(line.split("tsc: Detected")[1].split()[0]) * 1000)
    return 0


def kernel_arguments(extra):
    args = ["console=ttyS0", "security=selinux", "enforcing=1", "reboot=t", "panic=-1", "loglevel=4",
            "log_buf_len=4M", "audit_backlog_limit=8192", "random.trust_cpu=on"]
    khz = tsc_khz()
    if khz:
        args += [f"tsc_early_khz={khz}", "tsc=reliable"]
    return " ".join(args + extra)


def qemu_arguments(options, port):
    restrict = "off" if options["net"] else "on"
    return ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64",
            "-name", f"casemate-l1-{options['name']}", "-nodefaults", "-no-user-config", "-display", "none",
            "-M", "q35,usb=off,smbus=off", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt",
            "-smp", str(options["cpus"]), "-m", str(options["memory"]), "-no-reboot",
            "-kernel", kernel.VMLINUX, "-initrd", kernel.INITRAMFS,
            "-append", kernel_arguments(options["append"]),
            "-drive", f"file={image.DISK},format=raw,if=none,id=disk,snapshot=on,cache=unsafe",
            "-device", "virtio-blk-pci,drive=disk",
            "-netdev", f"user,id=net,restrict={restrict},hostfwd=tcp:127.0.0.1:{port}-:22",
            "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
            "-serial", "file:serial.log"]


def ssh_base(port):
    """Run with the instance's directory as cwd: socket paths stay short."""
    return ["ssh", "-F", "none", "-S", "ssh.ctl", "-p", str(port), "-i", str(image.SSH / "id_ed25519"),
            "-o", f"UserKnownHostsFile={image.SSH / 'known_hosts'}", "-o", "HostKeyAlias=casemate-l1",
            "-c", "aes128-gcm@openssh.com",         # twice as fast as the default under emulation
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
            "-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=20"]


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _still_there(pid, start):
    return start is not None and process_start(pid) == start


def process_start(pid):
    """Start time in ticks: tells a process from a later one with its number."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


class Keeper:
    """The daemon's side. One pass of `watch` every second."""

    def __init__(self, inst, options):
        self.inst, self.options = inst, options
        self.port = _free_port()
        self.qemu = self.master = None
        self.stop_asked = False
        self.began = time.time()

    def main(self):
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._on_term)
        os.chdir(self.inst.dir)
        for old in ("serial.log", "qemu.log", "ssh.ctl"):
            (self.inst.dir / old).unlink(missing_ok=True)
        self.inst.write_state(pid=os.getpid(), port=self.port, phase="starting", why="",
                              began=self.began, ready_after=None, options=self.options)
        why = "its keeper failed, see keeper.log"
        try:
            why = self._boot() or self._watch()
        except Exception:
            traceback.print_exc()
        finally:
            self._end()
            self.inst.write_state(phase="ended", why=why, ended=time.time())

    def _on_term(self, *_):
        self.stop_asked = True

    def _boot(self):
        env = {**os.environ, "TMPDIR": str(self.inst.dir)}
        with open("qemu.log", "w") as log:
            self.qemu = subprocess.Popen([str(a) for a in qemu_arguments(self.options, self.port)],
                                         stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        limit = time.monotonic() + BOOT_LIMIT
        while READY not in self.inst.tail("serial.log"):
            if self.qemu.poll() is not None:
                return f"QEMU ended with {self.qemu.returncode} while booting"
            if self.stop_asked:
                return "stopped while booting"
            if time.monotonic() > limit:
                return f"no {READY} on the serial line within {BOOT_LIMIT} s"
            time.sleep(0.05)
        self._start_master()
        while not (self.inst.dir / "ssh.ctl").exists():
            if self.master.poll() is not None:
                return f"ssh to L1 failed with {self.master.returncode}, see qemu.log"
            if self.stop_asked or time.monotonic() > limit:
                return "no ssh connection to L1 within the boot limit"
            time.sleep(0.05)
        (self.inst.dir / "activity").touch()
        self.inst.write_state(phase="ready", ready_after=round(time.time() - self.began, 1))
        return None

    def _start_master(self):
        with open("qemu.log", "a") as log:
            self.master = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *ssh_base(self.port), "-M", "-N", "root@127.0.0.1"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _idle_minutes(self):
        path = self.inst.dir / "activity"
        with open(path, "a") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.utime(path)
                return 0
        return (time.time() - path.stat().st_mtime) / 60

    def _watch(self):
        while True:
            if self.stop_asked:
                return "asked to stop"
            if self.qemu.poll() is not None:
                return f"QEMU ended with {self.qemu.returncode} (L1 powered off or crashed, see serial.log)"
            if self._idle_minutes() > self.options["idle"]:
                return f"idle for {self.options['idle']} minutes"
            if time.time() - self.began > self.options["lifetime"] * 60:
                return f"lived its {self.options['lifetime']} minutes"
            parent = self.options["parent"]
            if parent and not _still_there(*parent):
                return f"its parent process {parent[0]} has ended"
            if self.master.poll() is not None:
                (self.inst.dir / "ssh.ctl").unlink(missing_ok=True)
                self._start_master()
            time.sleep(0.25)

    def _end(self):
        for child in (self.master, self.qemu):
            if child is None or child.poll() is not None:
                continue
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        (self.inst.dir / "ssh.ctl").unlink(missing_ok=True)


def _daemonise(inst, options):
    """Fork the keeper. It takes the lock before the caller goes on."""
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os.wait()
        with os.fdopen(told) as f:
            if f.read() != "locked":
                raise Failure(f"instance {inst.name} is held by another keeper")
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        lock = open(inst.dir / "lock", "a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log = os.open(inst.dir / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        null = os.open("/dev/null", os.O_RDONLY)
        inst.write_state(phase="starting", pid=os.getpid(), why="")
        os.write(tell, b"locked")
        os.close(tell)
        for fd, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(fd, target)
        # Nothing of the caller's may stay open: a pipe to it would never end.
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd != lock.fileno():
                with contextlib.suppress(OSError):
                    os.close(fd)
        Keeper(inst, options).main()
    finally:
        os._exit(0)


def up(inst, options):
    """Start and wait until a command may be run. Idempotent."""
    inst.dir.mkdir(parents=True, exist_ok=True)
    with locked(inst.dir / "starting", f"instance {inst.name} is being started, waiting"):
        if not inst.alive():
            _daemonise(inst, {**options, "name": inst.name})
        while inst.alive() and inst.state().get("phase") != "ready":
            time.sleep(0.05)
        state = inst.state()
        if not inst.ready():
            raise Failure(f"L1 {inst.name} did not come up: {state.get('why') or 'unknown'}\n"
                          f"{inst.tail('qemu.log')}\n{inst.tail('serial.log')}")
        return state


def down(inst):
    """Stop and wait. The pid is only trusted while the lock is held."""
    deadline = time.monotonic() + 20
    asked = False
    while inst.alive():
        pid = inst.state().get("pid")
        if pid and not asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            asked = True
        if time.monotonic() > deadline:
            raise Failure(f"L1 {inst.name} does not stop; keeper {pid}, see {inst.dir}/keeper.log")
        time.sleep(0.05)


def forget(inst):
    """Remove the directory of a one-shot instance that has ended."""
    if not inst.alive():
        shutil.rmtree(inst.dir, ignore_errors=True)


def report(inst):
    if not inst.alive():
        state = inst.state()
        why = state.get("why") or ("its keeper was killed" if state else "never started")
        say(f"{inst.name}: down ({why})")
        return False
    state = inst.state()
    age = int(time.time() - state.get("began", time.time()))
    print(f"{inst.name}: {state['phase']}, keeper {state['pid']}, ssh port {state.get('port')}, up {age} s, "
          f"ready after {state.get('ready_after')} s, {inst.dir}")
    return True
