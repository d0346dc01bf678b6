# The guest's first process in its own root: modules, COMMAND, its status to descriptor 5, end. The job comes before this
# text and defines `lab_command`, which changes to the caller's directory, sets the environment and executes COMMAND.
hostname lab
lab_prepare
mkdir -p /lib/modules
[ -e "/lib/modules/$(uname -r)" ] || ln -s "$lab_modules/$(uname -r)" /lib/modules/
{ modprobe ip_vs && modprobe dummy numdummies=0; } || {
    echo "lab: cannot load ip_vs and dummy"
    lab_off
}
ip link set lo up

# Pipes between COMMAND and the consoles: a program that sees a terminal colours its output.
lab_drain
mkfifo /run/.lab-1 /run/.lab-2
cat /run/.lab-1 >$lab_out &
out=$!
cat /run/.lab-2 >$lab_err &
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
lab_drain
# Files go back to the host.
echo "$status" >&5
sync
lab_off
