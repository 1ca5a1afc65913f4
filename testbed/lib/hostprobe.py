"""Can this machine itself do what L1 does: SELinux enforcing, and a /dev/kvm that runs Linux?

Callers: cli. Only looks; changes nothing.
"""
import fcntl
import os
from pathlib import Path

KVM_GET_API_VERSION, KVM_CHECK_EXTENSION = 0xAE00, 0xAE03
KVM_CAP_IRQCHIP, KVM_CAP_USER_MEMORY, KVM_CAP_SPLIT_IRQCHIP = 0, 3, 121


def _read(path):
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def selinux():
    """(ok, reason)"""
    lsm = _read("/sys/kernel/security/lsm")
    if not Path("/sys/fs/selinux/enforce").exists():
        if lsm and "selinux" not in lsm.split(","):
            return False, f"the kernel runs without SELinux (active LSMs: {lsm})"
        return False, "selinuxfs is not mounted: no SELinux in this kernel, or no policy loaded"
    if _read("/sys/fs/selinux/enforce") != "1":
        return False, "SELinux is permissive"
    return True, f"enforcing, this process is {_read('/proc/self/attr/current').rstrip(chr(0))}"


def kvm():
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        return False, f"cannot open /dev/kvm: {e.strerror}"
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION, 0)
        if version != 12:
            return False, f"KVM API version {version}, not 12"
        missing = [name for name, cap in (("USER_MEMORY", KVM_CAP_USER_MEMORY), ("IRQCHIP", KVM_CAP_IRQCHIP),
                                          ("SPLIT_IRQCHIP", KVM_CAP_SPLIT_IRQCHIP))
                   if fcntl.ioctl(fd, KVM_CHECK_EXTENSION, cap) <= 0]
        if missing:
            return False, f"KVM lacks {', '.join(missing)}"
    except OSError as e:
        return False, f"/dev/kvm refuses ioctl: {e.strerror}"
    finally:
        os.close(fd)
    flags = set(_read("/proc/cpuinfo").split("flags", 1)[-1].split("\n", 1)[0].split())
    module = [m for m in ("kvm_intel", "kvm_amd", "kvm_pvm") if Path(f"/sys/module/{m}").exists()]
    if not flags & {"vmx", "svm"}:
        return False, ("the CPU shows neither vmx nor svm" + (f" (KVM by {', '.join(module)})" if module else "")
                       + ": this KVM runs without hardware virtualization and is not known to run a stock Linux guest")
    return True, f"API 12, {', '.join(module) or 'built in'}, {'vmx' if 'vmx' in flags else 'svm'}"


def report():
    ok = True
    for name, (good, reason) in (("SELinux", selinux()), ("KVM", kvm())):
        print(f"{name}: {'yes' if good else 'no'}: {reason}")
        ok = ok and good
    print("this machine can run the enforcing tests itself" if ok
          else "the enforcing tests need the testbed (testbed up)")
    return 0 if ok else 1
