# The guest's first process in its own root: modules, COMMAND, its status to descriptor 5, end. The job comes before this
# text and defines `lab_command`, which changes to the caller's directory, sets the environment and executes COMMAND.
umount -l /mnt
hostname lab
mkdir -p /lib/modules
[ -e "/lib/modules/$(uname -r)" ] || ln -s "/usr/lib/uml/modules/$(uname -r)" /lib/modules/
{ modprobe ip_vs && modprobe dummy numdummies=0; } || {
    echo "lab: cannot load ip_vs and dummy"
    lab_off
}
ip link set lo up

# Debian builds this kernel without nf_tables for IPv4 and IPv6, so `iptables` has to mean the legacy one here.
if [ -x /usr/sbin/iptables-legacy ] && [ -e /etc/alternatives/iptables ]; then
    for tool in iptables ip6tables; do
        ln -sf /usr/sbin/$tool-legacy /etc/alternatives/$tool
        ln -sf /usr/sbin/$tool-legacy-save /etc/alternatives/$tool-save
        ln -sf /usr/sbin/$tool-legacy-restore /etc/alternatives/$tool-restore
    done
fi

# Pipes between COMMAND and the consoles: a program that sees a terminal colours its output, and a terminal changes line ends.
stty -F /dev/tty1 raw
stty -F /dev/tty2 raw
mkfifo /run/.lab-1 /run/.lab-2
cat /run/.lab-1 >/dev/tty1 &
out=$!
cat /run/.lab-2 >/dev/tty2 &
err=$!
(
    exec </dev/null >/run/.lab-1 2>/run/.lab-2 5>&-
    rm /run/.lab-1 /run/.lab-2
    lab_command
)
status=$?

# What COMMAND left running would hold the pipes open.
for process in /proc/[0-9]*; do
    process=${process#/proc/}
    case $process in
    1 | "$out" | "$err") ;;
    *) kill -KILL "$process" 2>/dev/null ;;
    esac
done
wait "$out" "$err"
# `stty` waits until the console has taken everything; then files go back to the host.
stty -F /dev/tty1 raw
stty -F /dev/tty2 raw
echo "$status" >&5
sync
lab_off
