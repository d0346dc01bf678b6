//! Commands: the daemon, and what else a person can ask for. All of them use the one pipeline.

mod bench;
mod cleanup;
pub mod config_watch;
mod context;
mod intake;
pub mod logging;
mod observer;
mod once;
mod render;
mod run;
mod start;
mod version;
mod write_config;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cli::version::Called;
use crate::config::{Flags, normalize_flag_names};

/// A service proxy for Kubernetes nodes: sends packets for Services to healthy pods
///
/// Without a command it runs as the node's service proxy, in place of kube-proxy, and takes kube-proxy's flags.
#[derive(Debug, Parser)]
#[command(name = "portolan", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the rules that the manifests lead to; needs no privileges and no kernel
    Render {
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Make the kernel agree with the manifests or the API server, once
    Sync {
        /// Do it once; without this, `sync` does nothing that the daemon does not do
        #[arg(long, required = true)]
        once: bool,
        /// Print what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Remove what portolan or a mode of kube-proxy made in this node's kernel
    Cleanup {
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Measure which mode serves this kernel best, in network namespaces of its own
    ///
    /// Compares the modes on this kernel, side by side: how long all Services, or one change, take to be programmed, what changes cost,
    /// how long new connections take, how many requests pass, how much memory it needs. The rules of this node are not touched, and
    /// nothing is left behind, not even when it is interrupted. Wants root, and a machine that does nothing else.
    Bench {
        #[command(flatten)]
        flags: Box<bench::BenchFlags>,
    },
    /// One run of the benchmark: what `bench` starts
    #[command(hide = true)]
    BenchRun,
}

/// Runs the program with these arguments, the first of which is its own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let called = Called::by(arguments.first());
    match version::take(&mut arguments, called) {
        Ok(None) => {}
        Ok(Some(line)) => {
            println!("{line}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}: {error}", called.name());
            return ExitCode::FAILURE;
        }
    }
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(error) => return say(&error, called),
    };
    let result = match cli.command {
        None => {
            logging::init(&cli.flags);
            match (&cli.flags.write_config_to, cli.flags.cleanup, cli.flags.init_only) {
                (Some(path), ..) => write_config::write_config(&cli.flags, path),
                (None, Some(true), _) => cleanup::cleanup(&cli.flags),
                (None, _, Some(true)) => start::init_only(&cli.flags),
                (None, ..) => run::run(&cli.flags),
            }
        }
        Some(Command::Render { flags }) => {
            logging::init(&flags);
            render::render(&flags)
        }
        Some(Command::Sync { dry_run, flags, .. }) => {
            logging::init(&flags);
            once::sync_once(&flags, dry_run)
        }
        Some(Command::Cleanup { flags }) => {
            logging::init(&flags);
            cleanup::cleanup(&flags)
        }
        Some(Command::Bench { flags }) => bench::bench(&flags),
        Some(Command::BenchRun) => bench::bench_run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {}", called.name(), explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// What clap has to say: a help text, or what is wrong with the arguments.
fn say(error: &clap::Error, called: Called) -> ExitCode {
    if !error.use_stderr() {
        // If not even that can be written, there is nobody to tell.
        error.print().unwrap_or_default();
        return ExitCode::SUCCESS;
    }
    match called {
        Called::Portolan => error.print().unwrap_or_default(),
        Called::KubeProxy => {
            let text = error.to_string();
            eprint!("{}: {}", called.name(), text.strip_prefix("error: ").unwrap_or(&text));
        }
    }
    ExitCode::FAILURE
}

/// An error with its causes. Many errors of libraries name their cause in their own text; it is not said twice.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(normalize_flag_names(arguments))?;
    Cli::from_arg_matches(&matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_is_the_daemon_with_the_flags_of_kube_proxy() {
        let cli = parsed("portolan --config=/etc/kube-proxy/config.conf --hostname_override=node1 -v 2").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.flags.hostname_override.as_deref(), Some("node1"));
        assert_eq!(cli.flags.logging.verbosity, Some(2));
    }

    #[test]
    fn spellings_of_kube_proxy_mean_what_they_mean_to_it() {
        let cli = parsed("portolan --cleanup --logging-format=json -v=4").unwrap();
        let log = (cli.flags.logging.log_format, cli.flags.logging.verbosity);
        assert_eq!((cli.flags.cleanup, log), (Some(true), (Some(LogFormat::Json), Some(4))));
        assert_eq!(parsed("portolan --cleanup=false").unwrap().flags.cleanup, Some(false));
    }

    #[test]
    fn commands_take_the_same_flags() {
        let Some(Command::Render { flags }) =
            parsed("portolan render --mode iptables --manifests dir").unwrap().command
        else {
            panic!("not a render command")
        };
        assert_eq!((flags.proxy_mode.as_deref(), flags.manifests.as_deref()), (Some("iptables"), Some("dir")));
        assert!(parsed("portolan sync --manifests dir").is_err(), "sync needs --once");
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = anyhow::anyhow!("no such file");
        assert_eq!(
            explain(&cause.context("cannot read x: no such file").context("start")),
            "start: cannot read x: no such file"
        );
        assert_eq!(explain(&anyhow::anyhow!("denied").context("cannot read x")), "cannot read x: denied");
    }

    #[test]
    fn a_positional_argument_is_an_error() {
        assert!(parsed("portolan nonsense").is_err());
    }
}
