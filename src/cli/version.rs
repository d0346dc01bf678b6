//! The name under which the program was called, and `--version` with the values that kube-proxy takes.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The version of Kubernetes whose kube-proxy is matched.
const KUBERNETES: &str = "v1.36.2";

/// The name by which the program speaks of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Called {
    Portolan,
    /// An image or a script calls it by the name of what it replaces, and may read what it prints.
    KubeProxy,
}

impl Called {
    /// By the first argument, which is a path.
    pub(super) fn by(program: Option<&OsString>) -> Called {
        match program.and_then(|path| Path::new(path).file_name()) {
            Some(name) if name == "kube-proxy" => Called::KubeProxy,
            Some(_) | None => Called::Portolan,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Called::Portolan => "portolan",
            Called::KubeProxy => "kube-proxy",
        }
    }

    fn version(self) -> String {
        match self {
            Called::Portolan => format!("portolan {}", env!("CARGO_PKG_VERSION")),
            Called::KubeProxy => format!("Kubernetes {KUBERNETES}"),
        }
    }
}

/// Takes `--version` out of the arguments. Returns the line to print, if that is all that is asked for: `raw` is in
/// Kubernetes' long form; `false`, and a version that begins with `v`, which kube-proxy would then report as its own, let
/// the program run. Errors: any other value.
pub(super) fn take(arguments: &mut Vec<OsString>, called: Called) -> Result<Option<String>, String> {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let (flags, rest) = arguments.split_at(end);
    let (versions, others): (Vec<_>, Vec<_>) = flags.iter().cloned().partition(|argument| is_version(argument));
    let Some(last) = versions.last() else { return Ok(None) };
    let line = match last.to_str().and_then(|text| text.split_once('=')).map(|(_, value)| value) {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Some(called.version()),
        Some("raw") => {
            let mut parts = KUBERNETES.trim_start_matches('v').split('.');
            let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            Some(format!(r#"version.Info{{Major:"{major}", Minor:"{minor}", GitVersion:"{KUBERNETES}"}}"#))
        }
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => None,
        Some(version) if version.starts_with('v') => None,
        Some(other) => {
            return Err(format!("--version: {other:?} is neither true, false, raw nor a version such as v1.2.3"));
        }
    };
    *arguments = others.into_iter().chain(rest.iter().cloned()).collect();
    Ok(line)
}

fn is_version(argument: &OsStr) -> bool {
    argument.to_str().is_some_and(|text| text == "--version" || text.starts_with("--version="))
}
