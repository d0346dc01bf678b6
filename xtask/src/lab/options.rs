//! The arguments of `cargo xtask lab`.

use std::ffi::OsString;
use std::time::Duration;

const USAGE: &str = "usage: cargo xtask lab [--kernel uml|qemu|host] [--timeout SECONDS] [--memory MB] -- COMMAND...";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
const DEFAULT_MEMORY_MB: u32 = 2048;
/// Less and the guest's kernel has no room for its tables.
const LEAST_MEMORY_MB: u32 = 128;

/// Where the kernel with `ip_vs` comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelChoice {
    /// The kernel of this machine.
    Host,
    /// User-mode Linux: a guest kernel that is an ordinary program.
    Uml,
    /// QEMU without acceleration: a stock kernel with two processors, many times slower.
    Qemu,
}

impl KernelChoice {
    /// As in `--kernel` and in `PORTOLAN_LAB`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            KernelChoice::Host => "host",
            KernelChoice::Uml => "uml",
            KernelChoice::Qemu => "qemu",
        }
    }
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// `None`: the host's kernel if it has `ip_vs`, else User-mode Linux, or QEMU where that cannot be had.
    pub(crate) kernel: Option<KernelChoice>,
    /// From the start of the lab, boot included.
    pub(crate) timeout: Duration,
    /// Memory of a guest.
    pub(crate) memory_mb: u32,
    /// The program and its arguments; never empty.
    pub(crate) command: Vec<OsString>,
}

impl Options {
    /// Reads the arguments after `lab`. An error is a sentence for the caller.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Options, String> {
        let mut options =
            Options { kernel: None, timeout: DEFAULT_TIMEOUT, memory_mb: DEFAULT_MEMORY_MB, command: Vec::new() };
        while let Some(argument) = arguments.next() {
            let argument = argument.to_string_lossy().into_owned();
            if argument == "--" {
                options.command = arguments.collect();
                break;
            }
            let (flag, value) = match argument.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (argument, arguments.next().map(|value| value.to_string_lossy().into_owned())),
            };
            let value = value.ok_or_else(|| format!("{flag} wants a value; {USAGE}"))?;
            match flag.as_str() {
                "--kernel" => options.kernel = Some(kernel(&value)?),
                "--timeout" => options.timeout = Duration::from_secs(number(&flag, &value, 1)?.into()),
                "--memory" => options.memory_mb = number(&flag, &value, LEAST_MEMORY_MB)?,
                _ => return Err(format!("there is no {flag}; {USAGE}")),
            }
        }
        if options.command.is_empty() {
            return Err(format!("no command after `--`; {USAGE}"));
        }
        Ok(options)
    }
}

fn kernel(value: &str) -> Result<KernelChoice, String> {
    match value {
        "host" => Ok(KernelChoice::Host),
        "uml" => Ok(KernelChoice::Uml),
        "qemu" => Ok(KernelChoice::Qemu),
        _ => Err(format!("--kernel is uml, qemu or host, not {value}")),
    }
}

fn number(flag: &str, value: &str, least: u32) -> Result<u32, String> {
    value
        .parse()
        .ok()
        .filter(|number| *number >= least)
        .ok_or_else(|| format!("{flag} wants a whole number from {least} on, not {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn everything_after_the_dashes_is_the_command() {
        let options = parse("--timeout 7 --memory=512 --kernel uml -- env --kernel host -- x").unwrap();
        assert_eq!(options.timeout, Duration::from_secs(7));
        assert_eq!(options.memory_mb, 512);
        assert_eq!(options.kernel, Some(KernelChoice::Uml));
        assert_eq!(options.command, ["env", "--kernel", "host", "--", "x"]);
    }

    #[test]
    fn bad_arguments_are_refused_with_a_sentence() {
        for (line, part) in [
            ("true", "wants a value"),
            ("--", "no command"),
            ("--timeout 5", "no command"),
            ("--timeout 0 -- true", "whole number from 1 on"),
            ("--memory 64 -- true", "whole number from 128 on"),
            ("--kernel bsd -- true", "not bsd"),
            ("--cpus 2 -- true", "there is no --cpus"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(part), "{line}: {message}");
        }
    }
}
