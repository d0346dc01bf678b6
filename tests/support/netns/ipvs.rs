//! What the kernel's load balancer holds in a namespace, as the kernel itself prints it: no code of the program is in between.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use super::Netns;

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VirtualServer {
    /// `TCP`, `UDP` or `SCTP`.
    pub(crate) protocol: String,
    /// Where clients send to.
    pub(crate) address: SocketAddr,
    /// Its scheduler.
    pub(crate) scheduler: String,
    /// Whether a client stays with its real server.
    pub(crate) persistent: bool,
    /// Its real servers, in the order of their addresses.
    pub(crate) servers: Vec<RealServer>,
}

/// A real server of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RealServer {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// 0: no new connections.
    pub(crate) weight: u32,
    /// Established connections.
    pub(crate) active: u32,
    /// Connections that are not established, or no longer.
    pub(crate) inactive: u32,
}

impl VirtualServer {
    /// Address and weight of every real server.
    pub(crate) fn weights(&self) -> Vec<(SocketAddr, u32)> {
        self.servers.iter().map(|server| (server.address, server.weight)).collect()
    }

    /// The real server with this address.
    pub(crate) fn server(&self, address: SocketAddr) -> Option<&RealServer> {
        self.servers.iter().find(|server| server.address == address)
    }
}

/// Whether this kernel has `ip_vs`, loaded if it is a module. For the first line of every test that needs it: where it is
/// missing the test says so and has nothing to do, except in the lab, where it fails.
pub(crate) fn kernel_has_ipvs() -> bool {
    const FILE: &str = "/proc/net/ip_vs";
    if !Path::new(FILE).exists() {
        // Where there is no such program or module, the file says so.
        let _ = Command::new("modprobe").args(["-q", "ip_vs"]).status();
    }
    let there = Path::new(FILE).exists();
    if !there {
        assert!(std::env::var_os("PORTOLAN_LAB").is_none(), "the lab's kernel has no ip_vs");
        println!("not run: this kernel has no ip_vs; use `cargo xtask lab`");
    }
    there
}

impl Netns {
    /// All virtual servers with their real servers, in the order of protocols and addresses; not the services of firewall marks.
    pub(crate) fn virtual_servers(&self) -> Vec<VirtualServer> {
        let text = self.ipvs_text();
        parse(&text).unwrap_or_else(|line| panic!("{line:?} in\n{text}"))
    }

    /// The virtual server of this protocol (`TCP`, `UDP`) and address.
    pub(crate) fn virtual_server(&self, protocol: &str, address: SocketAddr) -> Option<VirtualServer> {
        self.virtual_servers().into_iter().find(|server| server.protocol == protocol && server.address == address)
    }

    /// The same as the kernel wrote it, for messages.
    pub(crate) fn ipvs_text(&self) -> String {
        self.run(|| fs::read_to_string("/proc/thread-self/net/ip_vs")).expect("this kernel has no ip_vs")
    }

    /// The connections that the load balancer knows, as the kernel writes them, for messages.
    pub(crate) fn ipvs_connections_text(&self) -> String {
        self.run(|| fs::read_to_string("/proc/thread-self/net/ip_vs_conn")).expect("this kernel has no ip_vs")
    }

    /// The elements of an IP set, as `ipset` writes them; `None`: there is no such set.
    pub(crate) fn set_elements(&self, set: &str) -> Option<BTreeSet<String>> {
        let output = self.try_exec(&["ipset", "list", set, "-output", "save"]);
        let text = String::from_utf8(output.stdout).expect("output is text");
        let element = |line: &str| line.strip_prefix("add ")?.split_once(' ').map(|(_, element)| element.to_owned());
        output.status.success().then(|| text.lines().filter_map(element).collect())
    }

    /// The addresses of an interface; `None`: there is no such interface.
    pub(crate) fn addresses_of(&self, link: &str) -> Option<BTreeSet<IpAddr>> {
        let output = self.try_exec(&["ip", "-o", "address", "show", "dev", link]);
        let text = String::from_utf8(output.stdout).expect("output is text");
        let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok();
        output.status.success().then(|| text.lines().filter_map(address).collect())
    }
}

/// The error is the line that was not understood.
fn parse(text: &str) -> Result<Vec<VirtualServer>, String> {
    let mut found: Vec<VirtualServer> = Vec::new();
    let mut marked = false;
    // Three lines of head.
    for line in text.lines().skip(3) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_server = words.first() == Some(&"->");
        marked = words.first() == Some(&"FWM") || is_server && marked;
        if marked {
            continue;
        }
        let known = match words[..] {
            ["->", server, _forwarding, weight, active, inactive] => found
                .last_mut()
                .zip(real_server(server, [weight, active, inactive]))
                .map(|(service, server)| service.servers.push(server)),
            [protocol, server, scheduler, ref flags @ ..] => address(server).map(|address| {
                found.push(VirtualServer {
                    protocol: protocol.to_owned(),
                    address,
                    scheduler: scheduler.to_owned(),
                    persistent: flags.contains(&"persistent"),
                    servers: Vec::new(),
                });
            }),
            _ => None,
        };
        known.ok_or_else(|| line.to_owned())?;
    }
    found.iter_mut().for_each(|server| server.servers.sort());
    found.sort();
    Ok(found)
}

fn real_server(server: &str, numbers: [&str; 3]) -> Option<RealServer> {
    let [weight, active, inactive] = numbers.map(|number| number.parse().ok());
    Some(RealServer { address: address(server)?, weight: weight?, active: active?, inactive: inactive? })
}

/// `0A000001:01BB` or `[fd00:…]:01BB`.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse().ok()?,
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[test]
fn what_the_kernel_prints_is_understood() {
    let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
        Prot LocalAddress:Port Scheduler Flags\n  \
          -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
        UDP  [fd00:0096:0000:0000:0000:0000:0000:000a]:0035 lc \n  \
          -> [fd00:0000:0000:0000:0000:0000:0000:0001]:0035      Masq    1      0          7\n\
        TCP  0A600001:01BB rr persistent 1080000 FFFFFFFF\n  \
          -> 0A000002:192B      Masq    0      1          2         \n  \
          -> 0A000001:192B      Masq    3      0          0         \n";
    let found = parse(text).unwrap();
    assert_eq!((found[0].address, found[0].persistent), ("10.96.0.1:443".parse().unwrap(), true));
    assert_eq!(found[0].weights(), [("10.0.0.1:6443".parse().unwrap(), 3), ("10.0.0.2:6443".parse().unwrap(), 0)]);
    let last = RealServer { address: "[fd00::1]:53".parse().unwrap(), weight: 1, active: 0, inactive: 7 };
    assert_eq!((found[1].protocol.as_str(), found[1].servers[..].to_vec()), ("UDP", vec![last]));
    assert_eq!(found[1].server(last.address), Some(&last));
    assert!(parse("1\n2\n3\nwhat is this?").is_err());
}
