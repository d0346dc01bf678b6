//! What can be set for IPVS mode: the section `ipvs` of the file and kube-proxy's flags of the same meaning. Our own
//! settings of this mode are in `own`.

use std::time::Duration;

use ipnet::IpNet;

use crate::config::duration::{GoDuration, parse_duration};
use crate::config::flags::parse_bool;
use crate::kernel::item::Scheduler;

/// Settings of IPVS mode, checked and with defaults in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsOptions {
    /// How all virtual servers balance load.
    pub scheduler: Scheduler,
    /// Virtual servers with these addresses are never deleted.
    pub exclude_cidrs: Vec<IpNet>,
    /// Answer ARP only for addresses of the interface that is asked.
    pub strict_arp: bool,
    /// How long an idle TCP connection is remembered; 0: what the kernel has is left alone.
    pub tcp_timeout: Duration,
    /// The same after a FIN.
    pub tcp_fin_timeout: Duration,
    /// The same for UDP.
    pub udp_timeout: Duration,
    /// The section's own periods. In IPVS mode they are [`crate::config::Settings::sync_period`] and
    /// [`crate::config::Settings::min_sync_period`], which are the ones to use.
    pub sync_period: Duration,
    /// See [`IpvsOptions::sync_period`].
    pub min_sync_period: Duration,
    /// How long the connections of an endpoint that no EndpointSlice names any more may go on; 0: not at all.
    pub drain_timeout: Duration,
    /// How Service addresses become local.
    pub vips: VipSetting,
    /// Whether the kernel computes rates; `None`: what the kernel has is left alone.
    pub run_estimation: Option<bool>,
}

/// How Service addresses become local, with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VipSetting {
    /// Each is an address of the dummy link.
    Addresses,
    /// Each of these networks, from which cluster IPs are taken, gets one local route. Not empty.
    Routes(Vec<IpNet>),
}

/// The flags of IPVS mode.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "IPVS mode")]
pub struct IpvsFlags {
    /// How IPVS mode balances load: rr, lc, sh, mh or another scheduler that the kernel has [default: rr]
    #[arg(long, value_name = "NAME")]
    pub ipvs_scheduler: Option<String>,
    /// Virtual servers with addresses in these CIDRs are somebody else's and are never deleted
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub ipvs_exclude_cidrs: Option<Vec<String>>,
    /// Answer ARP only for addresses of the interface that is asked (arp_ignore 1, arp_announce 2)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub ipvs_strict_arp: Option<bool>,
    /// Time until a failed sync is tried again, in IPVS mode [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub ipvs_sync_period: Option<GoDuration>,
    /// Least time between two syncs, in IPVS mode [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub ipvs_min_sync_period: Option<GoDuration>,
    /// Time after which the kernel forgets an idle TCP connection; 0 leaves the kernel's [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub ipvs_tcp_timeout: Option<GoDuration>,
    /// The same for a TCP connection after a FIN [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub ipvs_tcpfin_timeout: Option<GoDuration>,
    /// The same for UDP [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    pub ipvs_udp_timeout: Option<GoDuration>,
}

/// The section as it was written, by either way. `None` means "not set".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawIpvs {
    pub(crate) scheduler: String,
    pub(crate) exclude_cidrs: Vec<String>,
    pub(crate) strict_arp: bool,
    pub(crate) sync_period: Option<GoDuration>,
    pub(crate) min_sync_period: Option<GoDuration>,
    pub(crate) tcp_timeout: Option<GoDuration>,
    pub(crate) tcp_fin_timeout: Option<GoDuration>,
    pub(crate) udp_timeout: Option<GoDuration>,
}

impl IpvsFlags {
    /// kube-proxy's flags, of which a file takes the place, with whether they were given.
    pub(super) fn given(&self) -> [(&'static str, bool); 8] {
        [
            ("--ipvs-scheduler", self.ipvs_scheduler.is_some()),
            ("--ipvs-exclude-cidrs", self.ipvs_exclude_cidrs.is_some()),
            ("--ipvs-strict-arp", self.ipvs_strict_arp.is_some()),
            ("--ipvs-sync-period", self.ipvs_sync_period.is_some()),
            ("--ipvs-min-sync-period", self.ipvs_min_sync_period.is_some()),
            ("--ipvs-tcp-timeout", self.ipvs_tcp_timeout.is_some()),
            ("--ipvs-tcpfin-timeout", self.ipvs_tcpfin_timeout.is_some()),
            ("--ipvs-udp-timeout", self.ipvs_udp_timeout.is_some()),
        ]
    }

    /// The section that the flags alone make.
    pub(super) fn to_raw(&self) -> RawIpvs {
        RawIpvs {
            scheduler: self.ipvs_scheduler.clone().unwrap_or_default(),
            exclude_cidrs: list(self.ipvs_exclude_cidrs.as_deref()),
            strict_arp: self.ipvs_strict_arp.unwrap_or(false),
            sync_period: self.ipvs_sync_period,
            min_sync_period: self.ipvs_min_sync_period,
            tcp_timeout: self.ipvs_tcp_timeout,
            tcp_fin_timeout: self.ipvs_tcpfin_timeout,
            udp_timeout: self.ipvs_udp_timeout,
        }
    }
}

impl Default for IpvsOptions {
    /// kube-proxy's defaults; connections may go on for a minute.
    fn default() -> IpvsOptions {
        IpvsOptions {
            scheduler: Scheduler::ROUND_ROBIN,
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: Duration::ZERO,
            tcp_fin_timeout: Duration::ZERO,
            udp_timeout: Duration::ZERO,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            drain_timeout: Duration::from_secs(60),
            vips: VipSetting::Addresses,
            run_estimation: None,
        }
    }
}

/// The texts of a list. An empty one arrives as one empty text.
pub(super) fn list(texts: Option<&[String]>) -> Vec<String> {
    texts.filter(|texts| *texts != [""]).unwrap_or_default().to_vec()
}
