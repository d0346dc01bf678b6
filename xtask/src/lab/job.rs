//! What the lab has to run, as a piece of shell that works the same in a guest and on the host.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Variables of the caller that the command sees, besides those that begin with [`PREFIXES`].
const VARIABLES: &[&str] = &["PATH", "HOME", "CI", "LANG", "LD_LIBRARY_PATH"];
const PREFIXES: &[&str] = &["CARGO", "RUST", "PORTOLAN_", "NEXTEST", "__NEXTEST"];
/// Says to the command that it is in the lab, and on which kernel.
const MARK: &str = "PORTOLAN_LAB";
/// Where the lab has memory of its own in place of the host's files.
const HIDDEN: &[&str] = &["/run", "/dev", "/proc", "/sys"];

/// The command with what it needs from its caller.
pub(crate) struct Job {
    directory: PathBuf,
    environment: Vec<(OsString, OsString)>,
    command: Vec<OsString>,
    /// Directories that are the host's own in the lab: what is written there comes back.
    shared: Vec<PathBuf>,
}

impl Job {
    /// `command` in this process's directory with this process's variables, for the kernel of that name. Fails if the
    /// lab could not see the directory.
    pub(crate) fn of_this_process(kernel: &str, command: &[OsString]) -> Result<Job, String> {
        let directory = env::current_dir().map_err(|error| format!("cannot find the current directory: {error}"))?;
        if let Some(hidden) = HIDDEN.iter().find(|hidden| directory.starts_with(hidden)) {
            return Err(format!("cannot run in {}: {hidden} is the lab's own", directory.display()));
        }
        let mut environment: Vec<_> = env::vars_os().filter(|(name, _)| passes(name)).collect();
        add_system_programs(&mut environment);
        environment.retain(|(name, _)| name != MARK);
        environment.push((MARK.into(), kernel.into()));

        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
        let target = env::var_os("CARGO_TARGET_DIR").map(|target| directory.join(target));
        // A program of a temporary directory, which the lab would not see otherwise.
        let program = command.first().map(Path::new).filter(|program| program.components().count() > 1);
        let program = program.and_then(|program| directory.join(program).parent().map(Path::to_path_buf));
        let program = program.filter(|program| program.starts_with("/tmp") || program.starts_with("/dev/shm"));
        let shared = [sources, target, Some(directory.clone()), program];
        let shared = outermost(shared.into_iter().flatten().filter_map(|path| path.canonicalize().ok()).collect());
        Ok(Job { directory, environment, command: command.to_vec(), shared })
    }

    /// Shell that sets `lab_shared` (one directory a line) and defines `lab_command`, which replaces the shell that calls it.
    pub(crate) fn script(&self) -> OsString {
        let mut script = b"lab_shared=".to_vec();
        let shared: Vec<&[u8]> = self.shared.iter().map(|path| path.as_os_str().as_bytes()).collect();
        script.extend(quoted(OsStr::from_bytes(&shared.join(&b'\n'))));
        script.extend(b"\nlab_command() {\n    cd ");
        script.extend(quoted(self.directory.as_os_str()));
        script.extend(b" || exit 125\n    exec env -i");
        for (name, value) in &self.environment {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            script.push(b' ');
            script.extend(quoted(&pair));
        }
        for word in &self.command {
            script.push(b' ');
            script.extend(quoted(word));
        }
        script.extend(b"\n}\n");
        OsString::from_vec(script)
    }
}

fn passes(name: &OsStr) -> bool {
    let name = name.as_bytes();
    VARIABLES.iter().any(|variable| variable.as_bytes() == name)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// `ip`, `iptables` and their relatives are not in everyone's path.
fn add_system_programs(environment: &mut Vec<(OsString, OsString)>) {
    let Some((_, path)) = environment.iter_mut().find(|(name, _)| name == "PATH") else {
        environment.push(("PATH".into(), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into()));
        return;
    };
    for directory in ["/usr/sbin", "/sbin"] {
        if !env::split_paths(path).any(|known| known == Path::new(directory)) {
            path.push(":");
            path.push(directory);
        }
    }
}

/// Without directories that are inside others, and without the root directory itself, which would be the whole host.
fn outermost(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort();
    let mut outermost: Vec<PathBuf> = Vec::new();
    for path in paths {
        if path.parent().is_some() && !outermost.last().is_some_and(|outer| path.starts_with(outer)) {
            outermost.push(path);
        }
    }
    outermost
}

/// [`quoted`], for scripts that are put together as text.
pub(crate) fn shell_word(word: &OsStr) -> String {
    String::from_utf8_lossy(&quoted(word)).into_owned()
}

/// One word of shell that means exactly `word`.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut text = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => text.extend(br"'\''"),
            byte => text.push(*byte),
        }
    }
    text.push(b'\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_shell_passes_every_word_unchanged() {
        let words = ["", "it's", "a b", "$HOME `x` \\ \"q\"", "line\nline", "*"];
        let job = Job {
            directory: "/tmp".into(),
            environment: vec![("NAME".into(), "it's $1".into()), ("PATH".into(), "/usr/bin:/bin".into())],
            command: ["printf", "[%s]"].iter().chain(&words).map(OsString::from).collect(),
            shared: vec![],
        };
        let mut script = job.script();
        script.push("lab_command");
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        let expected: String = words.iter().map(|word| format!("[{word}]")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    #[test]
    fn only_directories_that_are_in_no_other_are_shared() {
        let paths = ["/a/b/c", "/", "/a/b", "/a/bc", "/a/b"].map(PathBuf::from);
        assert_eq!(outermost(paths.to_vec()), ["/a/b", "/a/bc"].map(PathBuf::from));
    }

    #[test]
    fn variables_of_cargo_and_of_this_project_reach_the_command() {
        for name in ["PATH", "CARGO_HOME", "RUST_BACKTRACE", "PORTOLAN_X", "NEXTEST", "CI"] {
            assert!(passes(OsStr::new(name)), "{name}");
        }
        for name in ["TMPDIR", "TERM", "CIRCLE", "AWS_SECRET_ACCESS_KEY"] {
            assert!(!passes(OsStr::new(name)), "{name}");
        }
    }
}
