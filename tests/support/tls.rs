//! An API server over real TLS: certificates made for the test, HTTP/2 and HTTP/1.1 as told, and a count of connections.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// A server that demands a client certificate, and what a client needs to reach it.
pub(crate) struct TlsServer {
    /// Where a kubeconfig and its files are.
    pub directory: tempfile::TempDir,
    /// TLS handshakes that succeeded.
    pub handshakes: Arc<AtomicUsize>,
    /// What was received by the client, in bytes of TCP: TLS is in it, the heads of packets are not.
    pub received: Arc<AtomicUsize>,
    /// What was sent by the client.
    pub sent: Arc<AtomicUsize>,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    protocols: Vec<Vec<u8>>,
    disconnect: Arc<Notify>,
    /// While this is set, nothing comes through any more, and nothing is closed.
    pub cut: Arc<AtomicBool>,
}

impl TlsServer {
    /// Serves the router with these protocols, the preferred one first. Needs a tokio runtime.
    pub(crate) async fn start(router: Router, protocols: &[&str]) -> TlsServer {
        let directory = tempfile::tempdir().unwrap();
        let protocols: Vec<_> = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let (config, identity) = authority(&protocols);
        identity.write(directory.path());
        let acceptor = Arc::new(Mutex::new(TlsAcceptor::from(Arc::new(config))));
        let current = Arc::clone(&acceptor);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = listener.local_addr().unwrap();
        let (handshakes, cut) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let count = Arc::clone(&handshakes);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (router, count) = (router.clone(), Arc::clone(&count));
                let acceptor = current.lock().unwrap().clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    count.fetch_add(1, Ordering::SeqCst);
                    let service = TowerToHyperService::new(router);
                    // A client that goes away is no matter of the server's.
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        let (received, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let disconnect = Arc::new(Notify::new());
        let front =
            relay(behind, Arc::clone(&cut), Arc::clone(&disconnect), [Arc::clone(&received), Arc::clone(&sent)]).await;
        let server = TlsServer { directory, handshakes, received, sent, acceptor, protocols, disconnect, cut };
        server.write_kubeconfig(front);
        server
    }

    /// The kubeconfig with the client certificate.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// Has a new CA from now on, with which it is certified, and accepts only clients that are certified by it. Connections
    /// stay. Returns what a client then needs.
    pub(crate) fn renew(&self) -> Identity {
        let (config, identity) = authority(&self.protocols);
        *self.acceptor.lock().unwrap() = TlsAcceptor::from(Arc::new(config));
        identity
    }

    /// Closes all connections.
    pub(crate) fn disconnect(&self) {
        self.disconnect.notify_waiters();
    }

    /// Makes the kubeconfig one that wants nothing compressed.
    pub(crate) fn forbid_compression(&self) {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let text = text.replace("certificate-authority:", "disable-compression: true, certificate-authority:");
        std::fs::write(self.kubeconfig(), text).unwrap();
    }

    fn write_kubeconfig(&self, address: SocketAddr) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://{address}', certificate-authority: ca.pem}}}}]\n\
             users: [{{name: u, user: {{client-certificate: client.pem, client-key: client.key}}}}]\n"
        );
        std::fs::write(self.kubeconfig(), text).unwrap();
    }
}

/// What a client needs: names of files and their content.
pub(crate) struct Identity([(&'static str, String); 3]);

impl Identity {
    /// Writes the files.
    pub(crate) fn write(&self, directory: &Path) {
        self.0.iter().for_each(|(file, text)| std::fs::write(directory.join(file), text).unwrap());
    }

    /// Writes one of them.
    pub(crate) fn write_only(&self, name: &str, directory: &Path) {
        self.0.iter().filter(|(file, _)| *file == name).for_each(|(file, text)| {
            std::fs::write(directory.join(file), text).unwrap();
        });
    }
}

/// Makes a CA and two certificates: the server's configuration, and what the client needs.
fn authority(protocols: &[Vec<u8>]) -> (ServerConfig, Identity) {
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap(), key)
    };
    let (client, client_key) = signed("system.node-proxier");
    let identity = Identity([
        ("ca.pem", authority_certificate.pem()),
        ("client.pem", client.pem()),
        ("client.key", client_key.serialize_pem()),
    ]);
    let mut roots = RootCertStore::empty();
    roots.add(authority_certificate.der().clone()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let (own, own_key) = signed("127.0.0.1");
    let own_key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_client_cert_verifier(verifier).with_single_cert(vec![own.der().clone()], own_key);
    let mut config = config.unwrap();
    config.alpn_protocols = protocols.to_vec();
    (config, identity)
}

/// A relay before the server that counts what goes through to the client and from it, and can go silent, as a network does that
/// loses everything.
async fn relay(
    behind: SocketAddr,
    cut: Arc<AtomicBool>,
    disconnect: Arc<Notify>,
    counts: [Arc<AtomicUsize>; 2],
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (cut, disconnect, [received, sent]) = (Arc::clone(&cut), Arc::clone(&disconnect), counts.clone());
            tokio::spawn(async move {
                let mut server = TcpStream::connect(behind).await.unwrap();
                let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
                let is_cut = async {
                    while !cut.load(Ordering::SeqCst) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    () = pump(from_server, to_client, &received) => {}
                    () = pump(from_client, to_server, &sent) => {}
                    () = disconnect.notified() => {}
                    () = is_cut => std::future::pending().await,
                }
            });
        }
    });
    address
}

/// Passes on and counts until one side has ended.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, count: &AtomicUsize) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        count.fetch_add(read, Ordering::SeqCst);
    }
}
