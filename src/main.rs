//! The program `portolan`.

use std::process::ExitCode;

fn main() -> ExitCode {
    portolan::cli::main(std::env::args_os())
}
