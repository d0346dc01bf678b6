//! Addresses and CIDRs as old Kubernetes objects and flags may hold them: IPv4 octets and prefix lengths with leading
//! zeros, which are decimal. Newer parsers refuse these, but clusters that have them must go on working.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Reads an address; `010.0.0.1` is 10.0.0.1, and an IPv4-mapped IPv6 address is the IPv4 address, as for Kubernetes. `None`
/// when it is none.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        parse_ipv6(text).map(|address| address.to_canonical())
    } else {
        parse_ipv4(text).map(IpAddr::V4)
    }
}

/// Reads a CIDR; the address is normalised to that of its network. A range that is written as IPv4-mapped IPv6 stays
/// IPv6. `None` when it is none.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = parse_decimal(length, 3)?;
    let address = if address.contains(':') { IpAddr::V6(parse_ipv6(address)?) } else { parse_ip(address)? };
    let net = IpNet::new(address, u8::try_from(length).ok()?).ok()?;
    Some(net.trunc())
}

/// Reads `address:port` or `[address]:port`; an address without a port gets `default_port`.
pub fn parse_socket(text: &str, default_port: u16) -> Option<SocketAddr> {
    if let Some(address) = parse_ip(text) {
        return Some(SocketAddr::new(address, default_port));
    }
    let (address, port) = text.rsplit_once(':')?;
    let address = match address.strip_prefix('[') {
        Some(inner) => IpAddr::V6(parse_ipv6(inner.strip_suffix(']')?)?),
        None => IpAddr::V4(parse_ipv4(address)?),
    };
    let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
    Some(SocketAddr::new(address, port))
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(parse_decimal(parts.next()?, usize::MAX)?).ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// An IPv6 address, possibly with an IPv4 address in its last four bytes.
fn parse_ipv6(text: &str) -> Option<Ipv6Addr> {
    text.parse().ok().or_else(|| {
        let (head, tail) = text.rsplit_once(':')?;
        format!("{head}:{}", parse_ipv4(tail)?).parse().ok()
    })
}

fn parse_decimal(text: &str, longest: usize) -> Option<u32> {
    let digits = !text.is_empty() && text.len() <= longest && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_leading_zeros_are_decimal() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.011", Some("10.0.0.11")),
            ("0.0.0.0", Some("0.0.0.0")),
            ("::", Some("::")),
            ("FD00::0001", Some("fd00::1")),
            ("64:ff9b::10.0.0.1", Some("64:ff9b::a00:1")),
            ("64:ff9b::010.0.0.1", Some("64:ff9b::a00:1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("[::1]", None),
            ("fe80::1%eth0", None),
            ("", None),
            (" 10.0.0.1", None),
        ] {
            assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn cidrs_are_normalised() {
        for (text, expected) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("010.0.0.0/08", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1/64", Some("fd00::/64")),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0/", None),
            ("fd00::/129", None),
            ("primary", None),
        ] {
            assert_eq!(parse_cidr(text).map(|net| net.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn sockets_get_the_default_port() {
        for (text, expected) in [
            ("127.0.0.1:10249", Some("127.0.0.1:10249")),
            ("0.0.0.0", Some("0.0.0.0:7")),
            ("::", Some("[::]:7")),
            ("[::1]:80", Some("[::1]:80")),
            ("[::1]", None),
            ("10.0.0.1:http", None),
            ("10.0.0.1:+80", None),
            ("10.0.0.1:65536", None),
            (":80", None),
            ("localhost:80", None),
        ] {
            assert_eq!(parse_socket(text, 7).map(|socket| socket.to_string()).as_deref(), expected, "{text:?}");
        }
    }
}
