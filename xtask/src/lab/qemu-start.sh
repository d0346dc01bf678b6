# Builds the initial file system of a guest and becomes QEMU. From the environment: LAB_KERNEL, a directory with `boot` and
# `lib/modules` of one kernel. The kernel's messages come from the first serial port.
lab_start() {
    release=$(ls "$LAB_KERNEL/lib/modules")
    initial=/run/guest
    mkdir -p $initial/bin $initial/modules $initial/proc $initial/host $initial/run/lab
    cp "$(command -v busybox)" $initial/bin/busybox
    {
        echo '#!/bin/busybox sh'
        echo '/bin/busybox --install -s /bin; export PATH=/bin; mount -t proc proc /proc'
        for module in virtio_pci 9pnet_virtio 9p overlay virtio_console; do
            modprobe -d "$LAB_KERNEL" -S "$release" --show-depends $module
        done | while read -r word file _; do
            [ "$word" = insmod ] || continue
            name=${file##*/}
            [ -e "$initial/modules/$name" ] && continue
            cp "$file" $initial/modules/
            # Compressed with one of these, by later releases.
            case $name in
            *.xz) xz -d $initial/modules/$name ;;
            *.zst) zstd -qd --rm $initial/modules/$name ;;
            esac
            echo "insmod /modules/${name%.[xz]*}"
        done
        # Where something fails the host shows these scripts' words.
        echo 'mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /host || echo o >/proc/sysrq-trigger'
        echo 'mount -t 9p -o trans=virtio,version=9p2000.L lab /run/lab || echo o >/proc/sysrq-trigger'
        echo 'exec sh /run/lab/init'
    } >$initial/init
    chmod 755 $initial/init
    (cd $initial && find . | busybox cpio -o -H newc) >/run/initial 2>/dev/null

    # Not more than one processor's worth of threads would show no races.
    set -- -smp 2
    number=0
    IFS='
'
    for directory in $(sh -c '. /run/lab/job; echo "$lab_shared"'); do
        # A comma in a value is doubled.
        directory=$(printf %s "$directory" | sed 's/,/,,/g')
        set -- "$@" -virtfs "local,path=$directory,mount_tag=share$number,security_model=none,multidevs=remap"
        number=$((number + 1))
    done
    unset IFS
    exec qemu-system-x86_64 -machine q35 -cpu max -accel tcg,thread=multi -m "$LAB_MEMORY" -no-user-config -nodefaults \
        -display none -monitor none -no-reboot -kernel "$LAB_KERNEL/boot/vmlinuz-$release" -initrd /run/initial \
        -append "console=ttyS0 quiet panic=-1 oops=panic" \
        -chardev file,id=kernel,path=/dev/fd/1 -serial chardev:kernel \
        -device virtio-serial-pci -chardev file,id=out,path=/dev/fd/8 -chardev file,id=err,path=/dev/fd/9 \
        -device virtserialport,chardev=out,nr=1 -device virtserialport,chardev=err,nr=2 \
        -virtfs local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap \
        -virtfs local,path=/run/lab,mount_tag=lab,security_model=none "$@"
}
