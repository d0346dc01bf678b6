//! What IPVS mode needs of the kernel besides items: modules, which are only asked for, and settings, which are written.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RawProtocol, SocketFlags, SocketType};

use crate::kernel::item::{DUMMY_LINK, Scheduler};
use crate::kernel::{ErrorKind, KernelError};
use crate::linux::items::{Balancer, find_dummy, missing_scheduler};
use crate::linux::{Variant, sysctl};
use crate::net::{IpFamily, PerFamily};
use crate::netlink::ipset::{self, SetType};
use crate::netlink::ipvs::{Service, ServiceKey, Timeouts, Virtual};
use crate::netlink::link::{self, DUMMY};
use crate::netlink::socket::{Connection, NETFILTER, ROUTE};
use crate::netlink::{NetlinkError, errno, nftables};

/// The ports that are tried for a throw-away virtual server.
const PROBE_PORTS: std::ops::Range<u16> = 20000..20016;
/// `IPT_SO_GET_REVISION_MATCH` (`ip_tables.h`).
const GET_MATCH_REVISION: i32 = 66;
/// `IP6T_SO_GET_REVISION_MATCH` (`ip6_tables.h`).
const GET_MATCH_REVISION_6: i32 = 68;
/// The length of a name in `struct xt_get_revision`, behind which comes one byte.
const MATCH_NAME: usize = 29;
/// The match `set`, in the revision that has been there since Linux 2.6.39.
const SET_MATCH: (&str, u8) = ("set", 1);
/// The match `ipvs`.
const IPVS_MATCH: (&str, u8) = ("ipvs", 0);

/// What IPVS mode is to be run with, as far as the kernel has to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The families that are served.
    pub families: PerFamily<bool>,
    /// How load is balanced.
    pub scheduler: Scheduler,
    /// The addresses of Services become addresses of the dummy link. With local routes there is no link.
    pub dummy_link: bool,
}

/// How the kernel is to be set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preparation {
    /// Addresses are announced by the interfaces that have them only: `arp_ignore` and `arp_announce`.
    pub strict_arp: bool,
    /// For how long an idle TCP connection is remembered; 0 leaves the kernel's value.
    pub tcp_timeout: Duration,
    /// The same after a FIN.
    pub tcp_fin_timeout: Duration,
    /// The same for UDP.
    pub udp_timeout: Duration,
    /// Whether rates are estimated, which costs time for each virtual server and real server; `None` leaves it as it is.
    pub run_estimation: Option<bool>,
}

/// Checks what IPVS mode needs. Modules are loaded by asking for what they have, where the kernel can do that; nothing else stays.
/// The error has one sentence for each need that is not met.
pub fn requirements(variant: Variant, needs: &Needs, timeout: Duration) -> Result<(), KernelError> {
    let wanted: Vec<IpFamily> = IpFamily::ALL.into_iter().filter(|family| needs.families[*family]).collect();
    let mut unmet = Vec::new();
    // This loads `ip_vs` on kernels before 5.12, too, which do not load it when they are asked for its family.
    let _ = wanted.first().map(|family| has_match(variant, *family, IPVS_MATCH, timeout));
    check_balancer(&wanted, &needs.scheduler, timeout, &mut unmet)?;
    check_sets(&wanted, timeout, &mut unmet)?;
    if needs.dummy_link {
        check_dummy(timeout, &mut unmet)?;
    }
    for family in wanted {
        if has_match(variant, family, SET_MATCH, timeout) == Some(false) {
            unmet.push(format!("{family} rules cannot look into sets: load the module xt_set"));
        }
    }
    match unmet.is_empty() {
        true => Ok(()),
        false => Err(KernelError::new(ErrorKind::Unsupported, unmet.join("; "))),
    }
}

/// The load balancer, its scheduler, and its connection tracking.
fn check_balancer(
    families: &[IpFamily],
    scheduler: &Scheduler,
    timeout: Duration,
    unmet: &mut Vec<String>,
) -> Result<(), KernelError> {
    let attempted = "looking for IPVS";
    let mut balancer = match Balancer::open(timeout) {
        Err(NetlinkError::Refused { errno: errno::ENOENT, .. }) => {
            unmet.push("the kernel has no IPVS: load the module ip_vs".to_owned());
            return Ok(());
        }
        opened => opened.map_err(|error| error.to_kernel_error(attempted))?,
    };
    let services = balancer.services().map_err(|error| error.to_kernel_error(attempted))?;
    for family in families {
        let in_use = |service: &Service| service.key.family() == *family && service.scheduler == scheduler.as_str();
        if services.iter().any(in_use) {
            continue;
        }
        match try_scheduler(&mut balancer, *family, scheduler) {
            Ok(()) => {}
            Err(NetlinkError::Refused { errno: errno::ENOENT, .. }) => {
                let sentence = missing_scheduler(scheduler.as_str());
                if !unmet.contains(&sentence) {
                    unmet.push(sentence);
                }
            }
            Err(NetlinkError::Refused { errno: errno::EAFNOSUPPORT, .. }) => {
                unmet.push(format!("the kernel's IPVS does not know {family}: it has to be built with it"));
            }
            Err(error) => return Err(error.to_kernel_error(&format!("trying the scheduler {}", scheduler.as_str()))),
        }
    }
    if sysctl::read("net/ipv4/vs/conntrack").is_err() {
        unmet.push(
            "IPVS cannot track connections (no sysctl net/ipv4/vs/conntrack): the kernel needs CONFIG_IP_VS_NFCT"
                .to_owned(),
        );
    }
    if sysctl::read("net/netfilter/nf_conntrack_max").is_err() {
        unmet.push("the kernel does not track connections: load the module nf_conntrack".to_owned());
    }
    Ok(())
}

/// Makes a virtual server with the scheduler and deletes it. Its address is one of those that are kept for documentation, so no
/// packet can be for it, and it must not exist. (A service of a firewall mark could meet packets that carry this mark.)
fn try_scheduler(balancer: &mut Balancer, family: IpFamily, scheduler: &Scheduler) -> Result<(), NetlinkError> {
    let address: IpAddr = match family {
        IpFamily::V4 => [198, 51, 100, 0].into(),
        IpFamily::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0].into(),
    };
    let mut last = NetlinkError::Interrupted;
    for port in PROBE_PORTS {
        let key = ServiceKey(Virtual::Address { protocol: 6, address: SocketAddr::new(address, port) });
        let added =
            balancer.connection.request(&balancer.ipvs.new_service(&Service::new(key, scheduler.as_str())), |_| Ok(()));
        match added {
            Err(error @ NetlinkError::Refused { errno: errno::EEXIST, .. }) => last = error,
            Err(error) => {
                if !matches!(error, NetlinkError::Refused { .. }) {
                    // The answer was lost; the virtual server may be there.
                    let _ = balancer.connection.request(&balancer.ipvs.delete_service(&key), |_| Ok(()));
                }
                return Err(error);
            }
            Ok(()) => return balancer.connection.request(&balancer.ipvs.delete_service(&key), |_| Ok(())),
        }
    }
    Err(last)
}

/// Sets, and each type that is used.
fn check_sets(families: &[IpFamily], timeout: Duration, unmet: &mut Vec<String>) -> Result<(), KernelError> {
    let attempted = "looking for sets";
    let mut connection = Connection::open(NETFILTER, timeout).map_err(|error| error.to_kernel_error(attempted))?;
    match connection.request(&ipset::query_protocol(), |_| Ok(())) {
        Ok(()) => {}
        Err(NetlinkError::Refused { errno: errno::EPERM, .. }) => {
            return Err(KernelError::new(ErrorKind::Denied, format!("{attempted}: not permitted")));
        }
        Err(NetlinkError::Refused { .. }) => {
            unmet.push("the kernel has no sets: load the module ip_set".to_owned());
            return Ok(());
        }
        Err(error) => return Err(error.to_kernel_error(attempted)),
    }
    for kind in SetType::USED {
        let needed: Vec<Option<IpFamily>> = match kind {
            SetType::BitmapPort => vec![None],
            _ => families.iter().copied().map(Some).collect(),
        };
        let knows = |connection: &mut Connection, family| {
            let mut fits = false;
            let asked = connection.request(&ipset::query_type(&kind, family), |message| {
                let versions = ipset::decode_versions(message)?;
                fits |= versions.is_some_and(|found| (found.lowest..=found.highest).contains(&kind.revision()));
                Ok(())
            });
            asked.is_ok() && fits
        };
        if !needed.into_iter().all(|family| knows(&mut connection, family)) {
            let module = kind.name().replace(',', "").replace(':', "_");
            unmet.push(format!("the kernel has no sets of the type {}: load the module ip_set_{module}", kind.name()));
        }
    }
    Ok(())
}

/// The dummy link, or that one can be made.
fn check_dummy(timeout: Duration, unmet: &mut Vec<String>) -> Result<(), KernelError> {
    let error = |error: NetlinkError| error.to_kernel_error(&format!("looking for the link {DUMMY_LINK}"));
    let mut connection = Connection::open(ROUTE, timeout).map_err(error)?;
    if let Some(found) = find_dummy(&mut connection).map_err(error)? {
        if found.kind.as_deref() != Some(DUMMY) {
            unmet.push(format!("there is a link {DUMMY_LINK} that is not a {DUMMY}: rename or remove it"));
        }
        return Ok(());
    }
    match connection.request(&link::create(DUMMY_LINK, DUMMY), |_| Ok(())) {
        Ok(()) => {}
        Err(NetlinkError::Refused { errno: errno::EOPNOTSUPP, .. }) => {
            unmet.push(format!("the kernel has no {DUMMY} links: load the module {DUMMY}"));
            return Ok(());
        }
        Err(refused) => return Err(error(refused)),
    }
    // Only an address needs it.
    match find_dummy(&mut connection).map_err(error)? {
        Some(made) => connection.request(&link::delete(made.index), |_| Ok(())).map_err(error),
        None => Ok(()),
    }
}

/// Whether rules can have a match of this name and revision; `None` if that cannot be told without a rule. It is asked as iptables itself
/// asks; being asked, the kernel loads the module.
pub fn has_match(variant: Variant, family: IpFamily, (name, revision): (&str, u8), timeout: Duration) -> Option<bool> {
    if variant == Variant::Legacy {
        return legacy_has_match(family, name, revision);
    }
    let request = nftables::get_match(family, name, revision);
    let asked =
        Connection::open(NETFILTER, timeout).and_then(|mut connection| connection.request(&request, |_| Ok(())));
    match asked {
        Ok(()) => Some(true),
        Err(NetlinkError::Refused { errno: errno::ENOENT, .. }) => Some(false),
        Err(_) => None,
    }
}

/// The same of the kernel's older tables; `None` where there are none.
fn legacy_has_match(family: IpFamily, name: &str, revision: u8) -> Option<bool> {
    let (family, level, option) = match family {
        IpFamily::V4 => (AddressFamily::INET, libc::IPPROTO_IP, GET_MATCH_REVISION),
        IpFamily::V6 => (AddressFamily::INET6, libc::IPPROTO_IPV6, GET_MATCH_REVISION_6),
    };
    let protocol = RawProtocol::new(libc::IPPROTO_RAW.unsigned_abs())?;
    let raw = rustix::net::Protocol::from_raw(protocol);
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(raw)).ok()?;
    let mut question = [0_u8; MATCH_NAME + 1];
    question.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    question[MATCH_NAME] = revision;
    let mut length = libc::socklen_t::try_from(question.len()).ok()?;
    // SAFETY: the kernel reads and writes at most `length` bytes of the buffer, which has that many, and the length that it wrote
    // to `length`; both live until the call returns, and the socket is open.
    let status =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, question.as_mut_ptr().cast(), &raw mut length) };
    match (status, std::io::Error::last_os_error().raw_os_error()) {
        (0, _) => Some(true),
        (_, Some(errno::ENOENT | errno::EPROTONOSUPPORT)) => Some(false),
        _ => None,
    }
}

/// Writes the settings, each only if it has another value, and the timeouts. Returns remarks for the log.
pub fn prepare(preparation: &Preparation, timeout: Duration) -> Result<Vec<String>, KernelError> {
    let mut remarks = Vec::new();
    // The settings are there from when the module is.
    Balancer::open(timeout).map_err(|error| Balancer::missing("setting up IPVS", &error))?;
    set("net/ipv4/vs/conntrack", "1", "the kernel needs CONFIG_IP_VS_NFCT")?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match version(&release) {
        Some(found) if found < (4, 1) => remarks.push(format!(
            "Linux {release} is older than 4.1: a client that reuses a port may wait a second for its connection"
        )),
        // A reused port got a new connection only after a second (kubernetes/kubernetes#93297).
        Some(found) if found < (5, 9) => set("net/ipv4/vs/conn_reuse_mode", "0", "load the module ip_vs")?,
        // The kernel's own value. A program for an older kernel may have left 0.
        _ => set("net/ipv4/vs/conn_reuse_mode", "1", "load the module ip_vs")?,
    }
    set("net/ipv4/vs/expire_nodest_conn", "1", "load the module ip_vs")?;
    set("net/ipv4/vs/expire_quiescent_template", "1", "load the module ip_vs")?;
    set("net/ipv4/ip_forward", "1", "the kernel has no IPv4")?;
    if preparation.strict_arp {
        set("net/ipv4/conf/all/arp_ignore", "1", "the kernel has no IPv4")?;
        set("net/ipv4/conf/all/arp_announce", "2", "the kernel has no IPv4")?;
    }
    if let Some(run) = preparation.run_estimation {
        match sysctl::ensure("net/ipv4/vs/run_estimation", if run { "1" } else { "0" }) {
            Err(error) if error.kind == ErrorKind::NotFound => remarks
                .push("this kernel has no sysctl net/ipv4/vs/run_estimation: it always estimates rates".to_owned()),
            outcome => drop(outcome?),
        }
    }
    remarks.extend(set_timeouts(preparation, timeout));
    Ok(remarks)
}

fn set(name: &str, value: &str, if_missing: &str) -> Result<(), KernelError> {
    match sysctl::ensure(name, value) {
        Ok(_) => Ok(()),
        Err(error) if error.kind == ErrorKind::NotFound => {
            Err(KernelError::new(ErrorKind::Unsupported, format!("{error}: {if_missing}")))
        }
        Err(error) if error.kind == ErrorKind::Denied => {
            let text = format!("{error}: /proc/sys has to be writable for this, or the value set beforehand");
            Err(KernelError::new(ErrorKind::Denied, text))
        }
        Err(error) => Err(error),
    }
}

/// Why the timeouts could not be set, if so. Services work without.
fn set_timeouts(preparation: &Preparation, timeout: Duration) -> Option<String> {
    // Less than a second is one: 0 would leave the value as it is.
    let seconds = |value: Duration| {
        let rounded = if value.is_zero() { 0 } else { value.as_secs().max(1) };
        u32::try_from(rounded).unwrap_or(u32::MAX)
    };
    let timeouts = Timeouts {
        tcp: seconds(preparation.tcp_timeout),
        tcp_fin: seconds(preparation.tcp_fin_timeout),
        udp: seconds(preparation.udp_timeout),
    };
    if timeouts == Timeouts::default() {
        return None;
    }
    let outcome = Balancer::open(timeout).and_then(|mut balancer| {
        let request = balancer.ipvs.set_timeouts(timeouts);
        balancer.connection.request(&request, |_| Ok(()))
    });
    outcome.err().map(|error| format!("the timeouts of IPVS could not be set to {timeouts:?}: {error}"))
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10.134-16.al8"), Some((5, 10)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("odd"), None);
    }
}
