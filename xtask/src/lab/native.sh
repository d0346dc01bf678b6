# The first process of the namespaces (network, mount, pid) that COMMAND runs in on the host's own kernel. When this process
# ends, the kernel ends all others here and forgets the mounts.
#
# Standard input is a socket to `cargo xtask lab`: its end means that the lab has to end; COMMAND's status is written to it.
# From the environment: LAB_JOB, which defines `lab_command`.
eval "$LAB_JOB"
unset LAB_JOB

exec 7<&0 </dev/null
mount -t sysfs sys /sys || exit
mount -t tmpfs -o mode=755 lab /run || exit
ip link set lo up || exit
(
    exec 7<&-
    lab_command
) &
command=$!
{
    read -r _ <&7
    kill -KILL "$command"
} 2>/dev/null >/dev/null &
wait "$command" 2>/dev/null
echo "$?" >&7
