//! Chores that need more than a line of shell: `cargo xtask <command>`.
//!
//! - `lab`: runs a command as root on a kernel that has `ip_vs` (docs/lab.md).
//! - `licences`: every dependency's licence is on the allow list in `deny.toml`. `cargo deny` checks the same and more,
//!   but takes minutes to build where it is not installed, and this check must run everywhere.
//! - `tidy`: the rules in `tests/tidy.rs`.

mod lab;
mod licences;

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let command = std::env::args().nth(1);
    match command.as_deref() {
        Some("lab") => lab::run(std::env::args_os().skip(2)),
        Some("licences") => licences::run(),
        Some("tidy") => tidy(),
        other => {
            eprintln!("xtask: {} is not a command; there are: lab, licences, tidy", other.unwrap_or("nothing"));
            ExitCode::from(2)
        }
    }
}

fn tidy() -> ExitCode {
    let status = Command::new("cargo").args(["test", "--quiet", "--package", "portolan", "--test", "tidy"]).status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: cannot start cargo: {error}");
            ExitCode::FAILURE
        }
    }
}
