# What scripts in a QEMU guest use. The first of them run in the initial file system, with busybox.
lab_host=/host
# Ports of the virtual serial device.
lab_out=/dev/vport0p1
lab_err=/dev/vport0p2

# Ends the guest. By the kernel itself, since a container has no `halt`.
lab_off() {
    echo o >/proc/sysrq-trigger
    sleep 60
}

# The initial file system has loaded it.
lab_begin() { :; }

# NUMBER DIRECTORY PLACE: makes a directory of the host's appear there.
lab_share() { mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap "share$1" "$3"; }

# Makes the current directory the root, but for `chroot`: the initial root cannot be left otherwise.
lab_enter() { mount --move . /; }

lab_prepare() { :; }

# A write to these ports returns when the host has taken it.
lab_drain() { :; }
