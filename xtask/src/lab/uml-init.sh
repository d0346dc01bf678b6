#!/bin/sh
# The guest's first process, on the host's file system. Builds the guest's own root (an overlay of memory over the host's
# files, so that nothing but $lab_shared can be changed on the host) and moves into it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec 5>/run/lab/status
. /run/lab/job
root=$(cat /run/lab/root)
job=$(cat /run/lab/job)

# Without a status, the host shows what was said here.
fail() {
    echo "lab: $*"
    lab_off
}

mount -t proc proc /proc || fail "cannot mount /proc"
insmod "/usr/lib/uml/modules/$(uname -r)/kernel/fs/overlayfs/overlay.ko" || fail "cannot load overlay"
mount -t tmpfs -o mode=755 lab /run || fail "cannot mount /run"
mkdir /run/upper /run/work /run/root
new=/run/root
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work lab $new || fail "cannot mount the overlay"
mount --move /proc $new/proc
mount -t devtmpfs dev $new/dev || fail "cannot mount /dev"
mkdir $new/dev/pts $new/dev/shm
ln -s /proc/self/fd $new/dev/fd
ln -s /proc/self/fd/0 $new/dev/stdin
ln -s /proc/self/fd/1 $new/dev/stdout
ln -s /proc/self/fd/2 $new/dev/stderr
mount -t devpts -o ptmxmode=666 devpts $new/dev/pts
mount -t sysfs sys $new/sys
for directory in dev/shm run tmp; do
    mkdir -p $new/$directory
    mount -t tmpfs -o mode=1777 lab $new/$directory || fail "cannot mount /$directory"
done
chmod 755 $new/run
mkdir -p $new/mnt

# One directory a line.
IFS='
'
for directory in $lab_shared; do
    mkdir -p "$new$directory"
    mount --bind "$directory" "$new$directory" || fail "cannot share $directory"
done
unset IFS

cd $new && pivot_root . mnt || fail "cannot change the root"
exec chroot . /bin/sh -c "$job
$root"
