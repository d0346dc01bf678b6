//! The lab itself, on a guest kernel: what goes in, what comes out, and that nothing stays.
//!
//! Wants root (packages are installed if they are missing). Without, each test says so and passes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The lab with small memory, in this package's directory. `None` without root.
fn lab(flags: &[&str], script: &str) -> Option<Command> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("left out: the lab wants root");
        return None;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["lab", "--memory", "512", "--timeout", "60"]).args(flags).args(["--", "sh", "-c", script]);
    Some(command)
}

fn uml(script: &str) -> Option<Output> {
    Some(lab(&["--kernel", "uml"], script)?.output().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard error without the line that names the kernel, which comes first.
fn stderr_of_command(output: &Output) -> String {
    let stderr = text(&output.stderr);
    let (first, rest) = stderr.split_once('\n').unwrap_or_else(|| panic!("no line of the lab's own: {stderr:?}"));
    assert!(first.starts_with("lab: User-mode Linux 6."), "{first}");
    rest.to_owned()
}

fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lab-{name}"));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Ids of all processes whose command line or environment contains `mark`, zombies and this process left out.
fn processes_with(mark: &str) -> BTreeSet<u32> {
    let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| *id != std::process::id())
        .filter(|id| {
            ["cmdline", "environ"]
                .iter()
                .any(|file| fs::read(format!("/proc/{id}/{file}")).is_ok_and(|bytes| text(&bytes).contains(mark)))
        })
        .collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// What a lab could leave behind, as far as it is here now.
fn traces() -> Vec<String> {
    let home = std::env::var("HOME").unwrap_or_default();
    let paths = ["/lib/modules", "/run/lab", "/run/guest", "/run/upper", &format!("{home}/.uml")].map(PathBuf::from);
    let mut traces: Vec<String> = paths.iter().filter(|path| path.exists()).map(|path| format!("{path:?}")).collect();
    for (directory, beginning) in [("/lib/modules", ""), ("/tmp", "vm_file"), ("/dev/shm", "vm_file")] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        traces.extend(names.filter(|name| name.starts_with(beginning)).map(|name| format!("{directory}/{name}")));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    traces.extend(mounts.lines().filter(|line| line.starts_with("lab ")).map(str::to_owned));
    traces.sort();
    traces
}

#[test]
fn status_and_both_outputs_come_through_complete_and_apart() {
    let before = traces();
    // A megabyte each, at the same time, with bytes that a terminal would change.
    let Some(output) = uml(r#"(seq 1 150000 | sed 's/$/\r/' >&2) & seq 1 150000; wait
           test -t 1 || test -t 2 || echo plain; exit 3"#)
    else {
        return;
    };
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr[..output.stderr.len().min(2000)]));
    let numbers: Vec<String> = (1..=150_000).map(|number| number.to_string()).collect();
    let expected = numbers.join("\n") + "\nplain\n";
    assert!(text(&output.stdout) == expected, "{} bytes of {}", output.stdout.len(), expected.len());
    let expected = numbers.join("\r\n") + "\r\n";
    let stderr = stderr_of_command(&output);
    assert!(stderr == expected, "{} bytes of {}", stderr.len(), expected.len());
    assert_eq!(traces(), before);
}

#[test]
fn the_kernel_has_what_a_node_has() {
    let Some(output) = uml(r#"set -e
           test "$PORTOLAN_LAB" = uml; test "$(id -u)" = 0; test -e /proc/net/ip_vs
           ip link add d0 type dummy; ip address add 192.0.2.1/32 dev d0
           ip netns add other; ip link add v0 type veth peer name v1 netns other
           ip netns exec other ip link show v1 >/dev/null
           ip link | grep -q 'lo:.*UP'
           echo 1 >/proc/sys/net/ipv4/vs/conntrack
           modprobe -a xt_set ip_set_hash_ip ip_set_hash_ipport ip_set_hash_ipportnet ip_set_bitmap_port sctp
           for tables in iptables ip6tables iptables-legacy; do
               $tables -w -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE --random-fully
           done
           if command -v ipset >/dev/null; then
               ipset create s hash:ip,port; ipset add s 192.0.2.1,tcp:80
               iptables-legacy -w -t nat -A PREROUTING -m set --match-set s dst,dst -j ACCEPT
           fi
           iptables-legacy -w -t nat -A PREROUTING -m recent --name r --rcheck --seconds 9 --reap -j ACCEPT
           iptables-legacy -w -t nat -A PREROUTING -m statistic --mode random --probability 0.5 -j ACCEPT
           conntrack -L >/dev/null 2>&1
           touch /etc/portolan-lab /tmp/x; echo fine"#)
    else {
        return;
    };
    assert_eq!((text(&output.stdout), stderr_of_command(&output)), ("fine\n".into(), String::new()));
    assert_eq!(output.status.code(), Some(0));
    assert!(
        !Path::new("/etc/portolan-lab").exists(),
        "the guest changed a file of the host outside the shared directories"
    );
}

#[test]
fn files_written_under_target_come_back_and_a_signal_becomes_a_status() {
    let directory = scratch("files");
    fs::write(directory.join("in"), "from outside").unwrap();
    let script =
        format!("cd '{}'; cat in; dd if=/dev/zero of=out bs=1M count=8 2>&-; kill -SEGV $$", directory.display());
    let Some(output) = uml(&script) else { return };
    assert_eq!((text(&output.stdout), stderr_of_command(&output)), ("from outside".into(), String::new()));
    assert_eq!(output.status.code(), Some(128 + 11));
    assert_eq!(fs::read(directory.join("out")).unwrap(), vec![0; 8 << 20]);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_the_command_leaves_running_does_not_hold_the_lab_up() {
    let started = Instant::now();
    let Some(output) = uml("sleep 1000 & setsid sleep 1000 & echo started") else { return };
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "started\n".into()));
    assert!(started.elapsed() < Duration::from_secs(40));
}

#[test]
fn when_the_time_is_over_everything_ends_with_124() {
    let mark = format!("lab-test-timeout-{}", std::process::id());
    let script = format!("echo begun; exec sleep 1000 # {mark}");
    let Some(mut command) = lab(&["--kernel", "uml", "--timeout", "8"], &script) else { return };
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(124), "begun\n".into()));
    assert_eq!(
        stderr_of_command(&output),
        "lab: the command took longer than 8 s and was ended, with everything it had started\n"
    );
    wait_until("no process is left", || processes_with(&mark).is_empty());
}

#[test]
fn a_kernel_that_panics_ends_the_lab_at_once_with_125() {
    let escaped = scratch("panic").join("escaped");
    // One that ends by itself, and one that only says so and goes on.
    for (panic, message) in [
        ("echo c >/proc/sysrq-trigger", "sysrq triggered crash"),
        ("echo '<0>Kernel panic - not syncing: hung' >/dev/kmsg", "hung"),
    ] {
        let script = format!("echo begun; {panic}; sleep 1000; touch '{}'", escaped.display());
        let Some(output) = uml(&script) else { return };
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(125), "begun\n".into()));
        let stderr = stderr_of_command(&output);
        let sentence = format!("lab: the guest's kernel ended by itself: Kernel panic - not syncing: {message}; ");
        assert!(stderr.starts_with(&sentence), "{stderr}");
        assert!(!escaped.exists(), "a process of the guest went on on the host");
    }
    fs::remove_dir_all(escaped.parent().unwrap()).unwrap();
}

/// Packages that cannot be had make this fail: in CI the lab has to have its second kernel.
#[test]
fn the_stock_kernel_of_qemu_has_two_processors_and_the_same_manners() {
    let before = traces();
    let directory = scratch("qemu");
    let script = format!(
        r#"set -e
           test "$PORTOLAN_LAB" = qemu; test "$(nproc)" = 2; test -e /proc/net/ip_vs; test "$(id -u)" = 0
           ip link add d0 type dummy; ip link | grep -q 'lo:.*UP'
           modprobe -a xt_set ip_set_hash_ipportnet ip_set_bitmap_port nf_tables
           for tool in iptables-nft iptables-legacy ip6tables-nft; do
               $tool -w -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE --random-fully
           done
           touch /etc/portolan-lab /tmp/x; head -c 3000000 /dev/zero >'{}/out'
           (seq 1 20000 | sed 's/$/\r/' >&2) & seq 1 20000; wait
           sleep 1000 & exit 3"#,
        directory.display()
    );
    let Some(mut command) = lab(&["--kernel", "qemu"], &script) else { return };
    let output = command.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{}", &stderr[..stderr.len().min(2000)]);
    let numbers: Vec<String> = (1..=20_000).map(|number| number.to_string()).collect();
    assert!(text(&output.stdout) == numbers.join("\n") + "\n", "{} bytes", output.stdout.len());
    // Before the command's there are the lab's own lines: what is installed and fetched, and the kernel.
    let (own, rest) = stderr.split_at(stderr.find("1\r\n").expect("output of the command"));
    assert!(rest == numbers.join("\r\n") + "\r\n", "{} bytes", rest.len());
    assert!(own.lines().last().is_some_and(|line| line.starts_with("lab: QEMU without acceleration, Linux ")), "{own}");
    assert_eq!(fs::read(directory.join("out")).unwrap(), vec![0; 3_000_000]);
    assert!(!Path::new("/etc/portolan-lab").exists(), "the guest changed a file of the host");
    assert_eq!(traces(), before);
    fs::remove_dir_all(directory).unwrap();
}

/// Starts a lab that would run for long, and comes back when its command has begun.
fn endless(flags: &[&str], mark: &str) -> Option<Child> {
    use std::io::Read;
    let mut command = lab(flags, &format!("echo begun; exec sleep 1000 # {mark}"))?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut begun = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"begun\n");
    Some(child)
}

#[test]
fn a_lab_that_is_killed_leaves_nothing_behind() {
    let before = traces();
    let mark = format!("lab-test-killed-{}", std::process::id());
    for (kernel, signal, number) in
        [("uml", "-TERM", 15), ("uml", "-KILL", 9), ("qemu", "-KILL", 9), ("host", "-INT", 2), ("host", "-KILL", 9)]
    {
        let Some(mut child) = endless(&["--kernel", kernel], &mark) else { return };
        assert!(processes_with(&mark).len() > 1);
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().signal(), Some(number));
        wait_until("no process is left", || processes_with(&mark).is_empty());
    }
    assert_eq!(traces(), before);
}

#[test]
fn on_the_hosts_kernel_the_network_is_the_labs_own() {
    let script = "ip -o link; ip link add lab0 type veth; sleep 1000 & kill -TERM $$";
    let Some(mut command) = lab(&["--kernel", "host"], script) else { return };
    let output = command.output().unwrap();
    assert!(text(&output.stderr).starts_with("lab: the host's Linux "), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(128 + 15), "{}", text(&output.stderr));
    let links = text(&output.stdout);
    assert!(links.lines().all(|line| line.contains(" lo: ") || line.contains("NOARP")), "{links}");
    assert!(!Path::new("/sys/class/net/lab0").exists());
}

#[test]
fn bad_arguments_and_missing_programs_have_statuses_of_their_own() {
    let Some(mut command) = lab(&["--kernel", "vax"], "true") else { return };
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(text(&output.stderr), "lab: --kernel is uml, qemu or host, not vax\n");

    let mut command = lab(&["--kernel", "host"], "exec /no/such/program").unwrap();
    assert_eq!(command.output().unwrap().status.code(), Some(127));
}
