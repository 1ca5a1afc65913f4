/*
 * Asks /dev/kvm whether this L1 is a KVM host, and runs a three-instruction guest.
 * Prints one line per fact; exit status 0 only if the guest wrote what it should.
 * Callers: `testbed probe`, and anyone inside L1.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int stop(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    return 1;
}

int main(void)
{
    /* mov $0x2a,%al; out %al,$0x10; hlt, in real mode at 0x1000 */
    static const unsigned char code[] = {0xb0, 0x2a, 0xe6, 0x10, 0xf4};
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        return stop("open /dev/kvm");
    printf("KVM_GET_API_VERSION %d\n", ioctl(kvm, KVM_GET_API_VERSION, 0));
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0)
        return stop("KVM_CREATE_VM");
    unsigned char *ram = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ram == MAP_FAILED)
        return stop("mmap");
    memcpy(ram, code, sizeof code);
    struct kvm_userspace_memory_region region = {
        .guest_phys_addr = 0x1000, .memory_size = 0x1000, .userspace_addr = (unsigned long)ram};
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return stop("KVM_SET_USER_MEMORY_REGION");
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    if (vcpu < 0)
        return stop("KVM_CREATE_VCPU");
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        return stop("mmap of kvm_run");
    struct kvm_sregs sregs;
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
        return stop("KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
        return stop("KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    if (ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
        return stop("KVM_SET_REGS");
    if (ioctl(vcpu, KVM_RUN, 0) < 0)
        return stop("KVM_RUN");
    unsigned char seen = ((unsigned char *)run)[run->io.data_offset];
    int right = run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10 && seen == 0x2a;
    printf("guest wrote %#x to port %#x, exit reason %u: %s\n", seen, run->io.port, run->exit_reason,
           right ? "right" : "WRONG");
    return right ? 0 : 1;
}
