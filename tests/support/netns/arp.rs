//! Asking on a link who has an IPv4 address, as a switch or a router does.

use std::collections::BTreeSet;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Netns;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

const ETHERNET: [u8; 2] = [0, 1];
const IPV4: [u8; 2] = [8, 0];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
const ARP: u16 = 0x0806;

/// Sends one request through this interface and gives the hardware addresses of all that answer about `target` in this time.
/// `sender` is the address that the request says it comes from.
pub(crate) fn who_has(
    from: &Netns,
    link: &str,
    sender: Ipv4Addr,
    target: Ipv4Addr,
    timeout: Duration,
) -> BTreeSet<Mac> {
    from.run(|| {
        let own = mac_of(link);
        let index: i32 = read(link, "ifindex").parse().expect("a number");
        let socket = open(index);
        let mut frame = Vec::with_capacity(42);
        frame.extend([0xff; 6]);
        frame.extend(own);
        frame.extend(ARP.to_be_bytes());
        frame.extend([ETHERNET, IPV4, [6, 4], REQUEST].concat());
        frame.extend(own);
        frame.extend(sender.octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        rustix::io::write(&socket, &frame).expect("send the request");
        answers(&socket, target, Instant::now() + timeout)
    })
}

/// The hardware address of an interface of the calling thread's namespace.
pub(crate) fn mac_of(link: &str) -> Mac {
    let text = read(link, "address");
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a hardware address"));
    std::array::from_fn(|_| bytes.next().expect("six bytes"))
}

/// `/sys` shows the interfaces of the process's namespace; `ip` asks in the thread's.
fn read(link: &str, what: &str) -> String {
    let output = std::process::Command::new("ip").args(["-o", "link", "show", "dev", link]).output().expect("ip");
    let text = String::from_utf8(output.stdout).expect("text");
    let found = match what {
        "ifindex" => text.split(':').next(),
        _ => text.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next()),
    };
    found.unwrap_or_else(|| panic!("no {what} of {link} in {text:?}")).to_owned()
}

/// A socket that gets the ARP frames of one interface.
fn open(index: i32) -> OwnedFd {
    let protocol = ARP.to_be();
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    assert!(fd >= 0, "packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was made here and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeros are a valid value of this structure of numbers.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address lives during the call, and the length is its own.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(result, 0, "bind to the interface: {}", std::io::Error::last_os_error());
    socket
}

fn answers(socket: &OwnedFd, target: Ipv4Addr, deadline: Instant) -> BTreeSet<Mac> {
    let mut frame = [0; 128];
    let mut found = BTreeSet::new();
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let left = Timespec::try_from(left).expect("short time");
        if poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)).expect("poll") == 0 {
            break;
        }
        let length = rustix::io::read(socket, &mut frame).expect("receive");
        if length >= 42 && frame[20..22] == REPLY && frame[28..32] == target.octets() {
            found.insert(std::array::from_fn(|at| frame[22 + at]));
        }
    }
    found
}
