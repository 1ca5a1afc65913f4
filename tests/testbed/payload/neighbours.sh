#!/bin/sh
# Other managers of labels in L1, without systemd: what a service manager would do for libvirt and podman.
# Run in initrc_t, so that each daemon enters its own domain by its program's label.
#   neighbours.sh libvirt          virtlogd and libvirtd, with the SELinux driver
#   neighbours.sh podman           its store, and an image made of a tar archive
set -eu

libvirt() {
    # a second call, of another run of the tests in the same L1
    if [ -S /run/libvirt/libvirt-sock ] && virsh version >/dev/null 2>&1; then return; fi
    mkdir -p /run/libvirt /var/lib/libvirt/images /var/log/libvirt
    restorecon -R /run/libvirt /var/lib/libvirt /var/log/libvirt
    # a udev would give this group to /dev/kvm
    chgrp kvm /dev/kvm && chmod 660 /dev/kvm
    # namespaces: libvirt's private /dev needs rights on devtmpfs that Debian's virtd_t lacks without systemd's mounts;
    # cgroups: its delegation is a service manager's
    cat > /etc/libvirt/qemu.conf <<END
security_driver = "selinux"
namespaces = []
cgroup_controllers = []
END
    virtlogd -d
    libvirtd -d -p /run/libvirtd.pid
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        [ -S /run/libvirt/libvirt-sock ] && break
        sleep 0.5
    done
}

podman_store() {
    mkdir -p /var/lib/containers /run/containers /etc/containers
    # vfs: a copy of the root per container needs neither overlayfs nor its labels
    printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n' \
        > /etc/containers/storage.conf
    restorecon -R /var/lib/containers /run/containers /etc/containers
    # by a pipe: podman_t may not open what lies elsewhere in /var/lib
    cat /var/lib/testbed/guest-rootfs-tiny.tar | podman import - localhost/tiny
}

case $1 in
    libvirt) libvirt ;;
    podman) podman_store ;;
    *) echo "neighbours.sh: $1?" >&2; exit 2 ;;
esac
