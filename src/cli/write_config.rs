//! `--write-config-to`: what is in force as a file, for people who move from flags to a file.

use anyhow::Context;

use crate::cli::start;
use crate::config::{self, Flags};

/// Writes the `KubeProxyConfiguration` and the `PortolanConfiguration` that mean the same as these flags and the file of
/// `--config`, defaults filled in, as YAML. kube-proxy reads the first document of a file only, so it takes this one, too. Needs neither kernel nor API server. Errors: wrong settings, or a file that cannot be written.
pub(super) fn write_config(flags: &Flags, path: &str) -> anyhow::Result<()> {
    let settings = start::settings(flags)?;
    let yaml = |document| serde_saphyr::to_string(document).context("cannot write the configuration as YAML");
    let (proxy, own) = (yaml(&config::effective(&settings))?, yaml(&config::effective_own(&settings))?);
    let text = format!("{proxy}---\n{own}");
    std::fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
    tracing::info!(path, "wrote the configuration");
    Ok(())
}
