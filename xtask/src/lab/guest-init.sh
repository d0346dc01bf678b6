#!/bin/sh
# The guest's first process, with the host's files in $lab_host (all of it, read-only for all purposes). Builds the guest's own
# root (an overlay of memory over the host's files, so that nothing but $lab_shared can be changed on the host) and moves into it.
#
# /run/lab is the host's. What differs between guest kernels is defined in /run/lab/job (uml-guest.sh, qemu-guest.sh).
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

lab_begin || fail "cannot load overlay"
mount -t tmpfs -o mode=755 lab /run || fail "cannot mount /run"
mkdir /run/upper /run/work /run/root
new=/run/root
mount -t overlay -o lowerdir=$lab_host,upperdir=/run/upper,workdir=/run/work lab $new || fail "cannot mount the overlay"
mount --move /proc $new/proc
mount -t devtmpfs dev $new/dev || fail "cannot mount /dev"
mkdir -p $new/dev/pts $new/dev/shm
ln -sf /proc/self/fd $new/dev/fd
ln -sf /proc/self/fd/0 $new/dev/stdin
ln -sf /proc/self/fd/1 $new/dev/stdout
ln -sf /proc/self/fd/2 $new/dev/stderr
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
number=0
for directory in $lab_shared; do
    mkdir -p "$new$directory"
    lab_share "$number" "$directory" "$new$directory" || fail "cannot share $directory"
    number=$((number + 1))
done
unset IFS

cd $new && lab_enter || fail "cannot change the root"
exec chroot . /bin/sh -c "$job
$root"
