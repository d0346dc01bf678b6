//! The table of own settings. See [`Setting`] for what a row says.

use std::time::Duration;

use ipnet::IpNet;

use super::{Form, Setting, TakesEffect};
use crate::config::duration::{GoDuration, parse_duration};
use crate::config::{ConfigError, IptablesLayout, IptablesVariant, Settings, VipSetting};
use crate::net::{IpFamily, PerFamily, parse_cidr};

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "fullSyncPeriod",
        flag: "full-sync-period",
        form: Form::Duration,
        takes_effect: TakesEffect::AtOnce,
        meaning: "Time between two comparisons of the whole kernel state with what should be there",
        set: |settings, text| match duration(text)? {
            Duration::ZERO => Err("must be greater than 0".to_owned()),
            period => put(&mut settings.full_sync_period, period),
        },
        show: |settings| shown(settings.full_sync_period),
    },
    Setting {
        key: "ipFamilies",
        flag: "ip-families",
        form: Form::List("FAMILIES"),
        takes_effect: TakesEffect::AtStart,
        meaning: "Families to program if the node can do them: ipv4, ipv6 or both",
        set: |settings, text| put(&mut settings.families, families(text)?),
        show: |settings| join(IpFamily::ALL.into_iter().filter(|family| settings.families[*family])).to_lowercase(),
    },
    Setting {
        key: "iptables.variant",
        flag: "iptables-variant",
        form: Form::OneOf(&["auto", "nft", "legacy"]),
        takes_effect: TakesEffect::AtStart,
        meaning: "Which iptables programs to use; auto: those that other programs on the node use, as far as that can be told",
        set: |settings, text| {
            settings.iptables_variant = match text {
                "nft" => IptablesVariant::Nft,
                "legacy" => IptablesVariant::Legacy,
                _ => IptablesVariant::Auto,
            };
            Ok(())
        },
        show: |settings| {
            match settings.iptables_variant {
                IptablesVariant::Auto => "auto",
                IptablesVariant::Nft => "nft",
                IptablesVariant::Legacy => "legacy",
            }
            .to_owned()
        },
    },
    Setting {
        key: "iptables.layout",
        flag: "iptables-layout",
        form: Form::OneOf(&["kube-proxy", "compact"]),
        takes_effect: TakesEffect::AtOnce,
        meaning: "How iptables mode lays out Services in the nat table: rule by rule as kube-proxy does it, or with a third of the rules and short walks",
        set: |settings, text| {
            put(
                &mut settings.iptables_layout,
                if text == "compact" { IptablesLayout::Compact } else { IptablesLayout::KubeProxy },
            )
        },
        show: |settings| {
            match settings.iptables_layout {
                IptablesLayout::KubeProxy => "kube-proxy",
                IptablesLayout::Compact => "compact",
            }
            .to_owned()
        },
    },
    Setting {
        key: "ipvs.drainTimeout",
        flag: "ipvs-drain-timeout",
        form: Form::Duration,
        takes_effect: TakesEffect::AtOnce,
        meaning: "Time that TCP connections of an endpoint may go on after it is gone from all EndpointSlices; 0 ends them at once",
        set: |settings, text| put(&mut settings.ipvs.drain_timeout, duration(text)?),
        show: |settings| shown(settings.ipvs.drain_timeout),
    },
    Setting {
        key: "ipvs.vips",
        flag: "ipvs-vips",
        form: Form::OneOf(&["addresses", "routes"]),
        takes_effect: TakesEffect::AtOnce,
        meaning: "How Service addresses become local: an address on the dummy link for each, as kube-proxy does it, or a local route for each of the service CIDRs",
        set: |settings, text| {
            let routes = text == "routes";
            put(&mut settings.ipvs.vips, if routes { VipSetting::Routes(Vec::new()) } else { VipSetting::Addresses })
        },
        show: |settings| {
            match settings.ipvs.vips {
                VipSetting::Addresses => "addresses",
                VipSetting::Routes(_) => "routes",
            }
            .to_owned()
        },
    },
    Setting {
        key: "ipvs.serviceCIDRs",
        flag: "ipvs-service-cidrs",
        form: Form::List("CIDRS"),
        takes_effect: TakesEffect::AtOnce,
        meaning: "Networks from which cluster IPs are taken, for routes",
        set: |settings, text| match &mut settings.ipvs.vips {
            VipSetting::Addresses => Err("has an effect only with --ipvs-vips=routes".to_owned()),
            VipSetting::Routes(cidrs) => put(cidrs, service_cidrs(text)?),
        },
        show: |settings| match &settings.ipvs.vips {
            VipSetting::Addresses => String::new(),
            VipSetting::Routes(cidrs) => join(cidrs),
        },
    },
    Setting {
        key: "ipvs.runEstimation",
        flag: "ipvs-run-estimation",
        form: Form::Bool,
        takes_effect: TakesEffect::AtOnce,
        meaning: "Let the kernel compute rates of virtual and real servers or not; without this its setting stays",
        set: |settings, text| put(&mut settings.ipvs.run_estimation, Some(text == "true")),
        show: |settings| settings.ipvs.run_estimation.map(|on| on.to_string()).unwrap_or_default(),
    },
];

/// What is wrong with settings together.
pub(super) fn contradictions(settings: &Settings) -> Option<ConfigError> {
    let empty = settings.ipvs.vips == VipSetting::Routes(Vec::new());
    empty.then(|| ConfigError::without_value("--ipvs-service-cidrs", "must not be empty with --ipvs-vips=routes"))
}

fn put<T>(place: &mut T, value: T) -> Result<(), String> {
    *place = value;
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    duration.to_std().ok_or_else(|| "must be greater than or equal to 0".to_owned())
}

fn shown(duration: Duration) -> String {
    GoDuration::from(duration).to_string()
}

fn join(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn families(text: &str) -> Result<PerFamily<bool>, String> {
    let mut families = PerFamily::default();
    for item in text.split(',') {
        match item.to_ascii_lowercase().as_str() {
            "ipv4" => families.v4 = true,
            "ipv6" => families.v6 = true,
            _ => return Err(format!("{item:?} is neither ipv4 nor ipv6")),
        }
    }
    Ok(families)
}

fn service_cidrs(text: &str) -> Result<Vec<IpNet>, String> {
    let mut cidrs = Vec::new();
    for item in text.split(',') {
        match parse_cidr(item) {
            // Every packet would be for this node.
            Some(cidr) if cidr.prefix_len() == 0 => return Err("must not be all addresses".to_owned()),
            Some(cidr) if cidrs.contains(&cidr) => {}
            Some(cidr) => cidrs.push(cidr),
            None => return Err("must be a valid CIDR".to_owned()),
        }
    }
    Ok(cidrs)
}
