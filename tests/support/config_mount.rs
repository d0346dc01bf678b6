//! A daemon whose configuration file is in a directory that changes as the mount of a ConfigMap does.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The running daemon; killed when dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it with a Service of every kind.
    pub(crate) fn start(mount: &Mount, variant: &str) -> Daemon {
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/every-kind/cluster.yaml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(["--manifests", manifests, "--iptables-variant", variant, "--config"]).arg(mount.file());
        Daemon(command.stderr(Stdio::null()).spawn().expect("the daemon starts"))
    }

    /// Starts it with the API server that the configuration names.
    pub(crate) fn watching(mount: &Mount, variant: &str) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(["--iptables-variant", variant, "--config"]).arg(mount.file());
        Daemon(command.stderr(Stdio::null()).spawn().expect("the daemon starts"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A directory as kubelet makes it: the file is a link through `..data`, which is a link to a directory.
pub(crate) struct Mount {
    directory: tempfile::TempDir,
    version: u32,
}

impl Mount {
    /// The first version.
    pub(crate) fn new(text: &str) -> Mount {
        let mut mount = Mount { directory: tempfile::tempdir().unwrap(), version: 0 };
        mount.update(text);
        symlink("..data/config.conf", mount.file()).unwrap();
        mount
    }

    /// The path for `--config`.
    pub(crate) fn file(&self) -> std::path::PathBuf {
        self.directory.path().join("config.conf")
    }

    /// Makes a new directory, swaps the link, and removes the old directory.
    pub(crate) fn update(&mut self, text: &str) {
        let at = |name: &str| self.directory.path().join(name);
        let (old, new) = (at(&format!("..v{}", self.version)), format!("..v{}", self.version + 1));
        std::fs::create_dir(at(&new)).unwrap();
        std::fs::write(at(&new).join("config.conf"), text).unwrap();
        symlink(&new, at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        if Path::new(&old).exists() {
            std::fs::remove_dir_all(old).unwrap();
        }
        self.version += 1;
    }
}

pub(crate) fn configuration(more: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n\
         hostnameOverride: node1\nconntrack: {{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n{more}\n"
    )
}

/// The same with a document of portolan's own settings.
pub(crate) fn with_own(more: &str, own: &str) -> String {
    format!("{}---\napiVersion: portolan/v1alpha1\nkind: PortolanConfiguration\n{own}\n", configuration(more))
}

/// Writes a kubeconfig without credentials for this server; returns its path.
pub(crate) fn kubeconfig(directory: &Path, name: &str, url: &str) -> String {
    let path = directory.join(name);
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&path, text.to_string()).unwrap();
    path.display().to_string()
}

/// The answer to a GET; empty: there is none.
pub(crate) fn get(address: &str, path: &str) -> String {
    request(address, &format!("GET {path} HTTP/1.1"), "")
}

fn request(address: &str, head: &str, body: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "{head}\r\nHost: node\r\nConnection: close\r\n\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().unwrap_or_default()
}

/// The answer to a PUT.
pub(crate) fn put(address: &str, path: &str, body: &str) -> String {
    request(address, &format!("PUT {path} HTTP/1.1\r\nContent-Length: {}", body.len()), body)
}

pub(crate) const METRICS: &str = "127.0.0.1:10249";

pub(crate) fn metric_is(line: &str) -> bool {
    get(METRICS, "/metrics").lines().any(|found| found == line)
}

#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
