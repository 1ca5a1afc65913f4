"""Paths, processes, locks and the stage cache that every other part of the testbed uses.

Trust: a developer's tool that runs as root on a test machine; inputs are this checkout
and Debian's archive. Callers: all modules of this directory.
"""
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOM = pathlib.Path(__file__).resolve().parent.parent
REPO = ROOM.parent
CACHE = pathlib.Path(os.environ.get("CASEMATE_CACHE") or REPO / ".cache").absolute()
HOME = CACHE / "testbed"
GUEST = ROOM / "guest"
POLICIES = REPO / "policies"


class Failure(Exception):
    """What the tool could not do, in one sentence for its user."""


def say(text):
    print(f"testbed: {text}", file=sys.stderr, flush=True)


def run(argv, what, **options):
    """Run a helper program; its output is shown only when it fails."""
    argv = [str(a) for a in argv]
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, **options)
    except OSError as e:
        raise Failure(f"{what} failed: cannot run {argv[0]}: {e.strerror}") from e
    if done.returncode != 0:
        tail = done.stdout.decode(errors="replace")[-4000:]
        raise Failure(f"{what} failed: {argv[0]} ended with {done.returncode}\n{tail}")
    return done.stdout.decode(errors="replace")


def hash_file(path):
    """SHA-256 over the non-zero 64 KiB blocks of a file and their places: a sparse disk is
    quick, and it does not matter which of its zeros are holes."""
    h, block = hashlib.sha256(), 1 << 16
    zeros = bytes(block)
    with open(path, "rb", buffering=0) as f:
        fd, size, at = f.fileno(), os.fstat(f.fileno()).st_size, 0
        while at < size:
            try:
                start = max(at, os.lseek(fd, at, os.SEEK_DATA) // block * block)
            except OSError:             # ENXIO: only a hole is left
                break
            at = os.lseek(fd, start + 1, os.SEEK_HOLE) if start + 1 < size else size
            while start < at:
                data = os.pread(fd, block, start)
                if not data:
                    break
                if data != zeros[:len(data)]:
                    h.update(f"{start}:".encode())
                    h.update(data)
                start += block
            at = max(at, start)
    h.update(f"size {size}".encode())
    return h.hexdigest()


def hash_inputs(*items):
    """One digest over strings, files and (sorted) directories of files."""
    h = hashlib.sha256()
    for item in items:
        if isinstance(item, pathlib.Path):
            files = sorted(p for p in item.rglob("*") if p.is_file()) if item.is_dir() else [item]
            for f in files:
                h.update(f"{f.name}\0{f.stat().st_mode:o}\0{hash_file(f)}\0".encode())
        else:
            h.update(f"s{item}\0".encode())
    return h.hexdigest()


@contextlib.contextmanager
def locked(path, note=None):
    """Exclusive advisory lock for the length of a `with` block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if note:
                say(note)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Stage:
    """A cached step: made when its key (hash of the inputs) or an output no longer fits.

    Output files are hashed when made and again by every `testbed build`; a directory
    output is only known by its key, so nothing may write into it.
    """

    def __init__(self, name, key, outputs):
        self.name, self.key = name, key
        self.outputs = [pathlib.Path(o) for o in outputs]
        self.record = HOME / "stages" / f"{name}.json"

    def fresh(self, thorough):
        try:
            record = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return False
        if record.get("key") != self.key:
            return False
        for out in self.outputs:
            known = record["outputs"].get(str(out.relative_to(CACHE)))
            if known is None or not out.exists():
                return False
            if out.is_file():
                if out.stat().st_size != known["size"]:
                    return False
                if thorough and hash_file(out) != known["sha256"]:
                    say(f"{out.name}: content changed since it was made, making it again")
                    return False
        return True

    def made_key(self):
        """Digest of key and outputs: what a later stage depends on."""
        return hash_inputs(self.record.read_text())

    def ensure(self, make, thorough=False):
        """Call `make()` unless fresh. True if it was made now."""
        if self.fresh(thorough):
            return False
        say(f"making {self.name}")
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        make()
        outputs = {}
        for out in self.outputs:
            if not out.exists():
                raise Failure(f"making {self.name} left no {out}")
            entry = {}
            if out.is_file():
                entry = {"size": out.stat().st_size, "sha256": hash_file(out)}
            outputs[str(out.relative_to(CACHE))] = entry
        text = json.dumps({"key": self.key, "outputs": outputs}, indent=1)
        self.record.write_text(text + "\n")
        return True
