# What scripts in a User-mode Linux guest use.
lab_host=/
lab_modules=/usr/lib/uml/modules
# Console 1 is COMMAND's standard output, 2 its standard error.
lab_out=/dev/tty1
lab_err=/dev/tty2

# Ends the guest. By the kernel itself, since a container has no `halt`.
lab_off() {
    echo o >/proc/sysrq-trigger
    sleep 60
}

lab_begin() {
    mount -t proc proc /proc && insmod "$lab_modules/$(uname -r)/kernel/fs/overlayfs/overlay.ko"
}

# NUMBER DIRECTORY PLACE: makes a directory of the host's appear there.
lab_share() { mount --bind "$2" "$3"; }

# Makes the current directory the root, but for `chroot`.
lab_enter() { pivot_root . mnt; }

lab_prepare() {
    umount -l /mnt
    # Debian builds this kernel without nf_tables for IPv4 and IPv6, so `iptables` has to mean the legacy one here.
    if [ -x /usr/sbin/iptables-legacy ] && [ -e /etc/alternatives/iptables ]; then
        for tool in iptables ip6tables; do
            ln -sf /usr/sbin/$tool-legacy /etc/alternatives/$tool
            ln -sf /usr/sbin/$tool-legacy-save /etc/alternatives/$tool-save
            ln -sf /usr/sbin/$tool-legacy-restore /etc/alternatives/$tool-restore
        done
    fi
}

# A terminal changes line ends unless it is raw; and `stty` waits until the console has taken everything.
lab_drain() {
    stty -F $lab_out raw
    stty -F $lab_err raw
}
