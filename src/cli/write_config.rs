//! `--write-config-to`: what is in force as a file, for people who move from flags to a file.

use anyhow::Context;

use crate::cli::start;
use crate::config::{self, Flags};

/// Writes the `KubeProxyConfiguration` that means the same as these flags and the file of `--config`, defaults filled
/// in, as YAML. Needs neither kernel nor API server. Errors: wrong settings, or a file that cannot be written.
pub(super) fn write_config(flags: &Flags, path: &str) -> anyhow::Result<()> {
    let settings = start::settings(flags)?;
    let text =
        serde_saphyr::to_string(&config::effective(&settings)).context("cannot write the configuration as YAML")?;
    std::fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
    tracing::info!(path, "wrote the configuration");
    Ok(())
}
