//! Chores that need more than a line of shell: `cargo xtask <command>`.
//!
//! - `licences`: every dependency's licence is on the allow list in `deny.toml`. `cargo deny` checks the same and more,
//!   but takes minutes to build where it is not installed, and this check must run everywhere.
//! - `tidy`: the rules in `tests/tidy.rs`.

mod licences;

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let command = std::env::args().nth(1);
    match command.as_deref() {
        Some("licences") => licences::run(),
        Some("tidy") => tidy(),
        other => {
            eprintln!("xtask: {} is not a command; there are: licences, tidy", other.unwrap_or("nothing"));
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
