//! The program as a person runs it: whole outputs, exit codes, help.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn portolan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portolan")).args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Compares with a file, or writes it when BLESS=1.
fn compare(path: &Path, found: &str) -> Result<(), String> {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, found).expect("the golden file can be written");
        return Ok(());
    }
    let wanted = std::fs::read_to_string(path).unwrap_or_default();
    let differs = |(_, pair): &(usize, (&str, &str))| pair.0 != pair.1;
    if wanted == found {
        return Ok(());
    }
    let first = wanted.lines().zip(found.lines()).enumerate().find(differs);
    Err(match first {
        Some((line, (wanted, found))) => {
            format!("{}:{}:\n  wanted {wanted}\n  found  {found}", path.display(), line + 1)
        }
        None => format!("{}: {} lines wanted, {} found", path.display(), wanted.lines().count(), found.lines().count()),
    })
}

/// Each directory under `tests/golden` is a cluster with the flags in `args.txt`; `iptables.txt` and `ipvs.txt` are what `render`
/// prints for it in these modes, `notes.txt` what it says on standard error.
#[test]
fn render_prints_what_it_printed_when_it_was_reviewed() {
    let mut problems = Vec::new();
    let mut cases = 0;
    for case in std::fs::read_dir(golden()).expect("golden cases").map(|entry| entry.expect("an entry").path()) {
        cases += 1;
        let manifests = case.join("cluster.yaml").display().to_string();
        let flags = std::fs::read_to_string(case.join("args.txt")).unwrap_or_default();
        for mode in ["iptables", "ipvs"] {
            let mut arguments = vec!["render", "--mode", mode, "--manifests", &manifests];
            arguments.extend(flags.lines());
            let output = portolan(&arguments);
            assert!(output.status.success(), "{}: {}", case.display(), text(&output.stderr));
            problems.extend(compare(&case.join(format!("{mode}.txt")), &text(&output.stdout)).err());
            problems.extend(compare(&case.join("notes.txt"), &text(&output.stderr)).err());
        }
    }
    assert!(cases >= 5, "only {cases} golden cases");
    assert!(problems.is_empty(), "{}\nBLESS=1 writes what was found", problems.join("\n"));
}

#[test]
fn the_order_of_documents_does_not_show() {
    let case = golden().join("every-kind");
    let cluster = std::fs::read_to_string(case.join("cluster.yaml")).unwrap();
    let mut documents: Vec<&str> = cluster.split("\n---\n").collect();
    documents.reverse();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cluster.yaml"), documents.join("\n---\n")).unwrap();
    let flags = std::fs::read_to_string(case.join("args.txt")).unwrap();
    let manifests = dir.path().display().to_string();
    let mut arguments = vec!["render", "--manifests", &manifests];
    arguments.extend(flags.lines());
    compare(&case.join("iptables.txt"), &text(&portolan(&arguments).stdout)).unwrap();
}

#[test]
fn errors_are_one_sentence_on_standard_error_and_exit_code_1() {
    for (arguments, says) in [
        (&["render"][..], "render needs --manifests"),
        (&["render", "--manifests", "/nonexistent"], "/nonexistent"),
        (&["render", "--manifests", "/", "--mode", "nftables"], "nftables"),
        (&["render", "--manifests", "/", "--ipvs-vips", "routes"], "--ipvs-service-cidrs: must not be empty"),
        (&["render", "--manifests", "/", "--cluster-cidr", "10.0.0.0/99"], "10.0.0.0/99"),
        (&["render", "--config", "/nonexistent.yaml"], "/nonexistent.yaml"),
        (&["nonsense"], "nonsense"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let output = portolan(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn where_no_family_can_be_programmed_it_ends_and_says_why_for_each() {
    let output = Command::new(env!("CARGO_BIN_EXE_portolan"))
        .args(["sync", "--once", "--dry-run", "--hostname-override=node1"])
        .args(["--manifests", concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo")])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let sentence = said.lines().find(|line| line.contains("neither IPv4 nor IPv6 can be programmed")).unwrap();
    assert!(sentence.contains("not installed"), "{sentence}");
}

#[test]
fn help_and_version_are_printed_on_standard_output() {
    let help = portolan(&["--help"]);
    assert!(help.status.success());
    let commands = ["render", "sync", "cleanup"];
    let flags = ["--manifests", "--proxy-mode", "--cluster-cidr", "--iptables-variant", "--ipvs-scheduler"];
    let own_of_ipvs_mode =
        ["--ipvs-drain-timeout", "--ipvs-vips", "--ipvs-service-cidrs", "--ipvs-run-estimation", "[default: 1m0s]"];
    for word in commands.iter().chain(&flags).chain(&own_of_ipvs_mode) {
        assert!(text(&help.stdout).contains(word), "{word} is not in the help");
    }
    let version = portolan(&["--version"]);
    assert!(version.status.success());
    assert_eq!(text(&version.stdout).trim(), format!("portolan {}", env!("CARGO_PKG_VERSION")));
}

/// A file with some settings that are not the default.
const FILE: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n\
                    clusterCIDR: 10.1.0.0/16\nhostnameOverride: node-1\nipvs: {scheduler: wrr, strictARP: true}\n\
                    nodePortAddresses: [\"192.0.2.0/24\"]\nfeatureGates: {AllowServiceExternalIPs: false}\n\
                    ---\napiVersion: portolan/v1alpha1\nkind: PortolanConfiguration\nfullSyncPeriod: 7m\n";

#[test]
fn a_written_configuration_means_the_same_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("given"), FILE).unwrap();
    let write = |from: &str, to: &str| {
        let output = portolan(&["--config", &path(from), "--write-config-to", &path(to)]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        std::fs::read_to_string(path(to)).unwrap()
    };
    let first = write("given", "first");
    for line in
        ["mode: ipvs", "scheduler: wrr", "clusterCIDR: 10.1.0.0/16", "oomScoreAdj: -999", "fullSyncPeriod: 7m0s"]
    {
        assert!(first.contains(line), "{line} is not in\n{first}");
    }
    assert_eq!(write("first", "second"), first);
    let refused = portolan(&["--proxy-mode=nftables", "--write-config-to", &path("third")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!dir.path().join("third").exists());
}

#[test]
fn the_log_has_the_form_that_the_flags_ask_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("config"), format!("{FILE}noSuchField: 1\n")).unwrap();
    let said = |more: &[&str]| {
        let (config, to) = (path("config"), path("out"));
        let arguments = [&["--config", &config, "--write-config-to", &to], more].concat();
        text(&portolan(&arguments).stderr)
    };
    let json = said(&["--logging-format=json"]);
    assert!(json.contains("noSuchField") && json.lines().all(|line| line.starts_with('{')), "{json}");
    let plain = said(&[]);
    assert!(plain.contains("noSuchField") && !plain.contains("{\"timestamp"), "{plain}");
}

#[test]
fn version_takes_the_values_that_kube_proxy_takes() {
    assert!(text(&portolan(&["--version=raw"]).stdout).contains("GitVersion:\"v1.36.2\""));
    let wrong = portolan(&["--version=nonsense"]);
    assert_eq!((wrong.status.code(), text(&wrong.stdout)), (Some(1), String::new()));
    // With these the program runs; here it is stopped by another mistake.
    for value in ["--version=v1.30.0", "--version=false"] {
        let output = portolan(&[value, "--proxy-mode=nonsense"]);
        assert!(text(&output.stderr).contains("nonsense") && output.stdout.is_empty(), "{value}");
    }
}

#[test]
fn called_by_the_name_of_kube_proxy_it_answers_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("kube-proxy");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_portolan"), &program).unwrap();
    let run = |arguments: &[&str]| Command::new(&program).args(arguments).output().expect("the program starts");
    assert_eq!(text(&run(&["--version"]).stdout), "Kubernetes v1.36.2\n");
    for arguments in [&["--no-such-flag"][..], &["--config", "/nonexistent.yaml"]] {
        let output = run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("kube-proxy: "), "{said}");
    }
}
