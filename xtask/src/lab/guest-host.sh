# The first process of the namespaces (pid and mount) that a guest kernel runs in, on the host. When this process ends, the
# kernel ends all others here and forgets the mounts; so nothing has to be cleaned up.
#
# Standard input is a socket to `cargo xtask lab`: its end means that the lab has to end; COMMAND's status is written to it.
# From the environment: LAB_JOB, LAB_INIT, LAB_ROOT (scripts for the guest), LAB_MEMORY (MB), and LAB_START, which defines
# `lab_start`: it becomes the guest, whose standard output has the kernel's messages. Descriptor 8 is COMMAND's standard output, 9 its
# standard error: pipes, never the caller's own files, since guests make them non-blocking.

# The memory of User-mode Linux is a file; half as much again, since the guest's kernel has its own needs.
mount -t tmpfs -o mode=700,size=$((LAB_MEMORY + LAB_MEMORY / 2))m lab /run || exit
mkdir /run/lab /run/guest
printf '%s\n' "$LAB_JOB" >/run/lab/job
printf '%s\n' "$LAB_ROOT" >/run/lab/root
printf '%s\n' "$LAB_INIT" >/run/lab/init
chmod 755 /run/lab/init
mkfifo /run/messages
eval "$LAB_START"
unset LAB_JOB LAB_ROOT LAB_INIT LAB_START

exec 7<&0 8>&1 9>&2
lab_start </dev/null >/run/messages 2>&1 7<&- &
guest=$!
# Ends all but this first process, at one stroke: a process of User-mode Linux that outlived its kernel would go on as a process
# of the host.
end() { kill -KILL -1; }
# The kernel's messages. A kernel that panics may still go round in circles; it is given a second to say why.
while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
    *"Kernel panic"*)
        printf '%s\n' "${line#"${line%%Kernel panic*}"}" >/run/panic
        {
            sleep 1
            end
        } 2>/dev/null &
        ;;
    esac
done </run/messages >/run/console 7<&- &
{
    read -r _ <&7
    : >/run/ended
    end
} 2>/dev/null &
wait "$guest" 2>/dev/null

if [ -s /run/lab/status ]; then
    cat /run/lab/status >&7
elif [ ! -e /run/ended ]; then
    # The last messages may be on their way yet.
    sleep 0.5
    if [ -e /run/panic ]; then
        echo "lab: the guest's kernel ended by itself: $(tail -n 1 /run/panic); the last that it said:" >&2
    else
        echo "lab: the guest ended without a result; the last that it said:" >&2
    fi
    tail -n 20 /run/console >&2
fi
