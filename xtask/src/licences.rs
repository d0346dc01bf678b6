//! The licence of every package that `cargo metadata` names, against the `allow` list of `deny.toml`.

use std::process::{Command, ExitCode};

use serde_json::Value;

/// Runs the check on the workspace in the current directory and says what it found.
pub(crate) fn run() -> ExitCode {
    match check() {
        Ok((checked, problems)) if problems.is_empty() => {
            println!("licences: {checked} packages, all allowed by deny.toml");
            ExitCode::SUCCESS
        }
        Ok((_, problems)) => {
            for problem in problems {
                eprintln!("licences: {problem}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("licences: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The number of packages, and a line for each whose licence is not allowed.
fn check() -> Result<(usize, Vec<String>), String> {
    let deny = std::fs::read_to_string("deny.toml").map_err(|error| format!("cannot read deny.toml: {error}"))?;
    let allowed = allow_list(&deny);
    if allowed.is_empty() {
        return Err("deny.toml has no [licenses] allow list".to_owned());
    }
    let packages = packages()?;
    let problems = packages
        .iter()
        .filter_map(|(name, licence)| match licence {
            None => Some(format!("{name} names no licence")),
            Some(licence) if !satisfied(licence, &allowed) => Some(format!("{name}: {licence} is not allowed")),
            Some(_) => None,
        })
        .collect();
    Ok((packages.len(), problems))
}

/// Name, version and licence of every package, other than our own, that is built for Linux.
fn packages() -> Result<Vec<(String, Option<String>)>, String> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"])
        .output()
        .map_err(|error| format!("cannot start cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata is not JSON: {error}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
    Ok(packages
        .iter()
        .filter(|package| !package["source"].is_null())
        .map(|package| {
            let name = format!("{} {}", text(&package["name"]), text(&package["version"]));
            (name, package["license"].as_str().map(str::to_owned))
        })
        .collect())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// The strings of `allow = [...]` in the section `[licenses]`.
fn allow_list(deny: &str) -> Vec<String> {
    let section = deny.split("\n[").find(|part| part.trim_start_matches('[').starts_with("licenses]"));
    let Some(list) =
        section.and_then(|section| section.split_once("allow = [")).and_then(|(_, rest)| rest.split_once(']'))
    else {
        return Vec::new();
    };
    list.0.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether one can use the package under allowed licences only: an SPDX expression of identifiers (with `WITH`
/// exceptions), `AND`, `OR` and parentheses; the old `/` means `OR`.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let result = any_of(&tokens, &mut at, allowed);
    // What is left over was not understood, and what is not understood is not allowed.
    result && at == tokens.len()
}

fn any_of(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut result = all_of(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        result |= all_of(tokens, at, allowed);
    }
    result
}

fn all_of(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut result = one(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(tokens, at, allowed);
    }
    result
}

fn one(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if *token == "(" {
        let result = any_of(tokens, at, allowed);
        let closed = tokens.get(*at) == Some(&")");
        *at += 1;
        return result && closed;
    }
    let mut licence = (*token).to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        licence = format!("{licence} WITH {}", tokens.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    allowed.contains(&licence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_satisfied_only_by_allowed_licences() {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("MIT/GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Apache-2.0", true),
            ("(MIT OR Apache-2.0) AND GPL-3.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
            ("(MIT", false),
            ("MIT MIT", false),
            ("", false),
        ] {
            assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
        }
    }

    #[test]
    fn the_allow_list_is_read_from_its_own_section() {
        let deny = "[bans]\nallow = [\"x\"]\n\n[licenses]\n# c\nallow = [\n  \"MIT\",\n  \"ISC\",\n]\n";
        assert_eq!(allow_list(deny), ["MIT", "ISC"]);
        assert!(allow_list("[bans]\nallow = [\"x\"]\n").is_empty());
    }
}
