//! The proxy on the way to the API server: of a kubeconfig, or of the environment, by the rules of client-go.
//!
//! The matching of names and networks is hyper-util's, which knows curl's rules; what Go does otherwise is done before it.

use std::net::IpAddr;

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::source::kube::ConnectError;

/// The proxies that the environment names. The default is none.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// `HTTPS_PROXY`.
    https: String,
    /// `NO_PROXY`.
    exceptions: String,
}

impl Proxies {
    /// As `HTTPS_PROXY` and `NO_PROXY` would say.
    pub fn new(https: &str, exceptions: &str) -> Proxies {
        Proxies { https: https.to_owned(), exceptions: exceptions.to_owned() }
    }

    /// As the environment says: `HTTPS_PROXY` and `NO_PROXY`, else the same in small letters. `HTTP_PROXY` is for addresses with
    /// `http`, which no API server has any more, and is not read.
    pub fn from_env() -> Proxies {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let either = |name: &str| read(name).or_else(|| read(&name.to_lowercase())).unwrap_or_default();
        Proxies { https: either("HTTPS_PROXY"), exceptions: either("NO_PROXY") }
    }

    /// The proxy for a server; `None`: it is reached without. Errors: a proxy of another kind than `http`.
    pub(super) fn on_the_way_to(&self, server: &Uri) -> Result<Option<Intercept>, ConnectError> {
        let (Some("https"), Some(host)) = (server.scheme_str(), server.host()) else { return Ok(None) };
        if self.https.is_empty() || is_loopback(host) {
            return Ok(None);
        }
        let Some(exceptions) = exceptions(&self.exceptions, server.port_u16().unwrap_or(443)) else { return Ok(None) };
        let matcher = Matcher::builder().https(self.https.as_str()).no(exceptions).build();
        match matcher.intercept(server) {
            Some(proxy) => supported(proxy).map(Some),
            // What cannot be read as an address must not lead to connections without a proxy.
            None if Matcher::builder().https(self.https.as_str()).build().intercept(server).is_none() => {
                Err(ConnectError::Proxy(shown(&self.https)))
            }
            None => Ok(None),
        }
    }
}

/// The proxy of a kubeconfig, which knows no exceptions.
pub(super) fn named(url: &str) -> Result<Intercept, ConnectError> {
    let unusable = || ConnectError::Proxy(shown(url));
    let any: Uri = Uri::from_static("https://server");
    supported(Matcher::builder().https(url).build().intercept(&any).ok_or_else(unusable)?)
}

fn supported(proxy: Intercept) -> Result<Intercept, ConnectError> {
    match proxy.uri().scheme_str() {
        Some("http") => Ok(proxy),
        _ => Err(ConnectError::Proxy(shown(&proxy.uri().to_string()))),
    }
}

/// An address without user and password.
fn shown(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        (None, Some(at)) => url[at + 1..].to_owned(),
        _ => url.to_owned(),
    }
}

/// Go asks no proxy for these.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The exceptions that concern a port, without their ports; `None`: everything is an exception.
fn exceptions(list: &str, port: u16) -> Option<String> {
    let mut kept = Vec::new();
    for entry in list.split(',').map(str::trim) {
        if entry == "*" {
            return None;
        }
        let entry = entry.strip_prefix('*').unwrap_or(entry);
        match entry.rsplit_once(':') {
            // An IPv6 address has colons and no port, unless it is in brackets.
            Some((host, of)) if !host.contains(':') || host.ends_with(']') => {
                if of.parse() == Ok(port) {
                    kept.push(host.trim_start_matches('[').trim_end_matches(']'));
                }
            }
            _ => kept.push(entry.trim_start_matches('[').trim_end_matches(']')),
        }
    }
    Some(kept.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(exceptions: &str, server: &str) -> Option<String> {
        let proxies = Proxies::new("http://proxy:3128", exceptions);
        proxies.on_the_way_to(&server.parse().unwrap()).unwrap().map(|proxy| proxy.uri().to_string())
    }

    #[test]
    fn exceptions_are_those_of_go() {
        for (exceptions, server, direct) in [
            ("", "https://10.96.0.1", false),
            ("10.96.0.0/12", "https://10.96.0.1", true),
            ("10.96.0.0/12", "https://10.112.0.1", false),
            ("10.96.0.1", "https://10.96.0.1:6443", true),
            ("10.96.0.1:6443", "https://10.96.0.1:6443", true),
            ("10.96.0.1:443", "https://10.96.0.1:6443", false),
            ("fd00::/64", "https://[fd00::1]:6443", true),
            ("[fd00::1]:6443", "https://[fd00::1]:6443", true),
            ("fd00::2", "https://[fd00::1]", false),
            ("a.test, corp", "https://api.corp", true),
            ("corp", "https://corp", true),
            ("corp", "https://notcorp", false),
            (".corp", "https://api.corp", true),
            ("*.corp", "https://api.corp", true),
            ("*", "https://10.96.0.1", true),
            ("", "https://localhost:6443", true),
            ("", "https://127.0.0.1:6443", true),
            ("", "https://[::1]:6443", true),
            ("", "http://10.96.0.1", true),
        ] {
            assert_eq!(proxy(exceptions, server).is_none(), direct, "{server} with NO_PROXY={exceptions}");
        }
        assert!(Proxies::default().on_the_way_to(&"https://10.96.0.1".parse().unwrap()).unwrap().is_none());
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_named_without_its_password() {
        for url in ["socks5://user:secret@proxy:1080", "https://user:secret@proxy:1080", "http://user:secret@pro xy"] {
            let server = "https://10.96.0.1".parse().unwrap();
            for error in [Proxies::new(url, "").on_the_way_to(&server).err(), named(url).err()] {
                let text = error.unwrap().to_string();
                assert!(text.contains("pro") && !text.contains("secret"), "{text}");
            }
        }
        assert!(named("http://user:secret@proxy:3128").unwrap().basic_auth().is_some());
    }
}
