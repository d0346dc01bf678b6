//! `--init-only` on a real kernel: the set-up once with all privileges, and then again where nothing can be written.

use std::process::Command;

/// Runs a shell script in network and mount namespaces of its own, with the program as `$1`. Returns what it prints.
fn in_namespaces(script: &str) -> String {
    let output = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-ec", script, "sh", env!("CARGO_BIN_EXE_portolan")])
        .output()
        .expect("unshare starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("output is UTF-8");
    assert!(output.status.success(), "{said}");
    said
}

const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys /proc/sys;";

#[test]
fn a_kernel_that_is_set_up_needs_no_writing() {
    let said = in_namespaces(&format!(
        r#"run() {{ "$1" --init-only --hostname-override=node1; }}
        run "$1"
        echo "route_localnet $(cat /proc/sys/net/ipv4/conf/all/route_localnet)"
        {READ_ONLY}
        if echo 0 2>/dev/null >/proc/sys/net/ipv4/conf/all/route_localnet; then echo writable; fi
        run "$1"
        echo "chains $(iptables-save | grep -c KUBE)" "#
    ));
    assert!(said.contains("route_localnet 1"), "{said}");
    assert!(!said.contains("writable"), "{said}");
    assert_eq!(said.matches("the kernel is set up").count(), 2, "{said}");
    assert!(said.contains("chains 0"), "a rule was written: {said}");
}

#[test]
fn a_kernel_that_is_not_set_up_is_named_where_it_cannot_be_written() {
    let said = in_namespaces(&format!(
        r#"{READ_ONLY}
        if "$1" --init-only --hostname-override=node1; then echo "it works"; fi"#
    ));
    assert!(said.contains("route_localnet") && !said.contains("it works"), "{said}");
}
