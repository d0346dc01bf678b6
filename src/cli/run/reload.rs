//! Another configuration while the daemon runs: what is in force afterwards, or why it is refused.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::cli::config_watch::Reload;
use crate::cli::context::Facts;
use crate::cli::intake::SameNode;
use crate::cli::logging::LogHandle;
use crate::cli::once::{backend, context_of, engine_options};
use crate::cli::run::servers::{self, InForce};
use crate::cli::run::source::{Feed, Ready};
use crate::cli::start::{self, Prepare};
use crate::config::{ProxyMode, Settings, own_needing_restart};
use crate::health::{HealthState, Servers};
use crate::linux::LinuxKernel;
use crate::metrics::{Metrics, Reloaded};
use crate::source::kube::events::{ClusterEvent, Recorder};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{Message, Options, Reconfiguration};

/// Puts settings in force.
pub(super) struct Reloader {
    pub(super) in_force: InForce,
    pub(super) kernel: LinuxKernel,
    pub(super) facts: Facts,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<HealthState>,
    pub(super) recorder: Recorder,
    pub(super) to_sync: Sender<Message>,
    /// The watch has reported something: the first time that is what the start has read, unless it has changed since.
    pub(super) heard: bool,
}

impl Reloader {
    /// The name of the own Node.
    pub(super) fn node_name(&self) -> Arc<str> {
        Arc::clone(&self.facts.node_name)
    }

    /// The file of `--config` has changed. What is refused leaves everything as it is.
    pub(super) fn take(&mut self, reload: Reload, servers: &Servers, feed: &mut Feed) {
        let first = !std::mem::replace(&mut self.heard, true);
        let result = match reload {
            Reload::Refused(errors) => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
            Reload::Read { settings, .. } if *settings == *self.in_force.get() => {
                if first {
                    return;
                }
                Ok(Reloaded::Unchanged)
            }
            Reload::Read { settings, warnings } => {
                warnings.iter().for_each(|warning| tracing::warn!("configuration file: {warning}"));
                self.put_in_force(*settings, servers, feed).map(|()| Reloaded::Applied)
            }
        };
        let reloaded = match result {
            Ok(Reloaded::Applied) => {
                tracing::info!("another configuration is in force");
                let note = "another configuration is in force".to_owned();
                self.recorder.record(ClusterEvent::configuration_applied(&self.facts.node_name, note));
                Reloaded::Applied
            }
            Ok(other) => other,
            Err(why) => {
                tracing::error!("the configuration is refused, and the one before stays in force: {why}");
                self.recorder.record(ClusterEvent::invalid_configuration(&self.facts.node_name, why));
                Reloaded::Refused
            }
        };
        self.metrics.reloaded(reloaded, SystemClock.wall());
    }

    /// First everything that can fail, and last of that the kernel, since what is set there is not seen from outside; then the rest.
    fn put_in_force(&mut self, new: Settings, servers: &Servers, feed: &mut Feed) -> Result<(), String> {
        let old = self.in_force.get();
        let stream = self.stream_for(&old, &new, feed).map_err(|error| format!("{error:#}"))?;
        let addresses = servers.bind(&servers::listen(&new)).map_err(|error| error.to_string())?;
        let facts = self.prepare(&old, &new).map_err(|error| format!("{error:#}"))?;
        servers.move_to(addresses);
        for what in own_needing_restart(&old, &new) {
            tracing::warn!("{what} takes effect when the program is started again");
        }
        if let Some(log) = LogHandle::current() {
            log.apply(&new.logging);
        }
        self.health.set_sync_period(new.sync_period);
        servers::show_gates(&new, &self.metrics);
        let another_backend = new.mode != old.mode
            || match new.mode {
                ProxyMode::Iptables => new.iptables_layout != old.iptables_layout,
                ProxyMode::Ipvs => new.ipvs != old.ipvs,
            };
        let reconfiguration = Reconfiguration {
            backend: another_backend.then(|| backend(&new)),
            options: Options {
                node_needs: feed.node_needs(&new),
                ..engine_options(&new, self.kernel.tools().variant())
            },
            min_sync_period: new.min_sync_period,
            context_of: context_of(&new, facts.clone()),
        };
        let before = std::mem::replace(&mut self.facts, facts);
        self.in_force.set(new);
        // The end of the sync thread is noticed by the main thread.
        let _nobody_left = self.to_sync.send(Message::Reconfigure(Box::new(reconfiguration)));
        if let Some(ready) = stream {
            let same = if before.node_name == self.facts.node_name { SameNode::Yes } else { SameNode::No };
            feed.replace(ready, &self.facts.node_name, same);
        }
        Ok(())
    }

    /// What another stream begins with; `None`: the one that runs will do.
    fn stream_for(&self, old: &Settings, new: &Settings, feed: &Feed) -> anyhow::Result<Option<Ready>> {
        let same_node = start::node_name(new)? == *self.facts.node_name;
        if same_node && same_client(old, new) { Ok(None) } else { feed.prepare(new).map(Some) }
    }

    /// What the new settings need of the kernel. Its tools and families stay what they were at the start. On an error what can be
    /// undone is undone.
    fn prepare(&self, old: &Settings, new: &Settings) -> anyhow::Result<Facts> {
        let node_name = start::node_name(new)?.into();
        if !start::other_facts(old, new) {
            return Ok(Facts { node_name, ..self.facts.clone() });
        }
        let facts = |settings| start::facts(&self.kernel, self.facts.families, settings, Prepare::Yes);
        facts(new).inspect_err(|_| {
            if let Err(error) = facts(old) {
                tracing::warn!("what was set for the refused configuration cannot be undone: {error:#}");
            }
        })
    }
}

/// Whether the API server is asked in the same way. Which content types are asked for is not up to the settings.
fn same_client(old: &Settings, new: &Settings) -> bool {
    let client = |settings: &Settings| {
        (settings.kubeconfig.clone(), settings.master.clone(), settings.client.qps, settings.client.burst)
    };
    client(old) == client(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientOptions;

    #[test]
    fn only_what_the_client_is_made_from_asks_for_another_one() {
        let old = Settings::default();
        let with = |client: ClientOptions| Settings { client, ..Settings::default() };
        assert!(same_client(&old, &Settings { mode: ProxyMode::Ipvs, masquerade_all: true, ..Settings::default() }));
        let json = ClientOptions { accept_content_types: "application/json".into(), ..old.client.clone() };
        assert!(same_client(&old, &with(json)));
        assert!(!same_client(&old, &with(ClientOptions { qps: 1.0, ..old.client.clone() })));
        assert!(!same_client(&old, &with(ClientOptions { burst: 1, ..old.client.clone() })));
        assert!(!same_client(&old, &Settings { kubeconfig: Some("/k".into()), ..Settings::default() }));
    }
}
