# The first process of the namespaces (pid and mount) that User-mode Linux runs in, on the host. When this process ends, the
# kernel ends all others here and forgets the mounts; so nothing has to be cleaned up.
#
# Standard input is a socket to `cargo xtask lab`: its end means that the lab has to end; COMMAND's status is written to it.
# From the environment: LAB_JOB, LAB_INIT, LAB_ROOT (scripts for the guest), LAB_MEMORY (MB).

# The guest's memory is a file; half as much again, since the guest's kernel has its own needs.
mount -t tmpfs -o mode=700,size=$((LAB_MEMORY + LAB_MEMORY / 2))m lab /run || exit
mkdir /run/lab /run/uml
printf '%s\n' "$LAB_JOB" >/run/lab/job
printf '%s\n' "$LAB_ROOT" >/run/lab/root
printf '%s\n' "$LAB_INIT" >/run/lab/init
chmod 755 /run/lab/init
mkfifo /run/lab/messages
unset LAB_JOB LAB_ROOT LAB_INIT

# Consoles: 0 has the kernel's messages, 1 is COMMAND's standard output, 2 its standard error. The channels are pipes, never
# the caller's own files, since User-mode Linux makes them non-blocking.
exec 7<&0 8>&1 9>&2
HOME=/run TMPDIR=/run/uml linux.uml mem="${LAB_MEMORY}M" rootfstype=hostfs hostfs=/ rw init=/run/lab/init \
    uml_dir=/run/uml/ umid=lab quiet con=null con0=null,fd:1 con1=null,fd:8 con2=null,fd:9 \
    </dev/null >/run/lab/messages 2>&1 7<&- &
uml=$!
# Ends all but this script's first process, at one stroke: a process of the guest that outlived the guest's kernel would go on
# as a process of the host.
end() { kill -KILL -1; }
# The kernel's messages. A kernel that panics may still go round in circles; it is given a second to say why.
while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
    *"Kernel panic"*)
        printf '%s\n' "$line" >/run/lab/panic
        {
            sleep 1
            end
        } 2>/dev/null &
        ;;
    esac
done </run/lab/messages >/run/lab/console 7<&- &
{
    read -r _ <&7
    : >/run/lab/ended
    end
} 2>/dev/null &
wait "$uml" 2>/dev/null

if [ -s /run/lab/status ]; then
    cat /run/lab/status >&7
elif [ ! -e /run/lab/ended ]; then
    # The last messages may be on their way yet.
    sleep 0.5
    if [ -e /run/lab/panic ]; then
        echo "lab: the guest's kernel ended by itself: $(tail -n 1 /run/lab/panic); the last that it said:" >&2
    else
        echo "lab: the guest ended without a result; the last that it said:" >&2
    fi
    tail -n 20 /run/lab/console >&2
fi
