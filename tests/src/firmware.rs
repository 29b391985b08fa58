//! The network firmware of QEMU's virtio-net device (iPXE, in every QEMU package) as a guest: it is there some seconds
//! after power on, needs no operating system, and asks for an address over DHCP.
//!
//! [`DhcpServer`] is the other side. A firmware that answers an offer has been heard and has heard: frames pass both ways. It
//! is no test of rings under load, which real guests do; it shows that a VM was started right.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::bail;
use switch_core::{mac::MacAddr, sys::raw::RawSocket};
use vswitch_benches::netns::Namespace;

const HEADERS: usize = 14 + 20 + 8;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);
const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0xdc, 1]);
/// DHCP message types (RFC 2132 §9.6).
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;

/// A DHCP server on a device, for one offer.
#[derive(Debug)]
pub struct DhcpServer(RawSocket);

impl DhcpServer {
    /// Listens on a device of a namespace.
    ///
    /// # Errors
    /// There is no such device.
    pub fn listen(namespace: &Namespace, device: &str) -> anyhow::Result<DhcpServer> {
        let socket = namespace.run(|| RawSocket::open(device, true))??;
        socket.set_timeout(Duration::from_millis(200))?;
        Ok(DhcpServer(socket))
    }

    /// Offers addresses to the firmware with this MAC address until it requests one.
    ///
    /// # Errors
    /// It does not in time; the error says whether it was heard at all.
    pub fn serve(&mut self, client: MacAddr, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        let (mut heard, mut done) = (false, false);
        while !done {
            let mut offers = Vec::new();
            self.0.receive(|frame| match question(frame, client) {
                Some((DISCOVER, transaction)) => offers.push(offer(client, transaction)),
                Some((REQUEST, _)) => done = true,
                _ => {}
            })?;
            heard |= !offers.is_empty();
            self.0.send(&offers)?;
            if !done && Instant::now() >= deadline {
                bail!(
                    "the firmware at {client} {}",
                    if heard { "was heard, but has not heard" } else { "was not heard" }
                );
            }
        }
        Ok(())
    }
}

/// Type and transaction of a DHCP message from `client`.
fn question(frame: &[u8], client: MacAddr) -> Option<(u8, [u8; 4])> {
    let udp_to_server = frame.get(12..15)? == [8, 0, 0x45] && frame.get(23)? == &17 && frame.get(36..38)? == [0, 67];
    let from_client = frame.get(6..12)? == client.0;
    let message = frame.get(HEADERS..).filter(|_| udp_to_server && from_client)?;
    let transaction = message.get(4..8)?.try_into().ok()?;
    let mut options = message.get(236..)?.strip_prefix(&COOKIE)?;
    loop {
        match options {
            [53, 1, kind, ..] => return Some((*kind, transaction)),
            [0, rest @ ..] => options = rest,
            [_, length, rest @ ..] => options = rest.get(usize::from(*length)..)?,
            _ => return None,
        }
    }
}

fn offer(client: MacAddr, transaction: [u8; 4]) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[2, 1, 6, 0]);
    message[4..8].copy_from_slice(&transaction);
    message[16..20].copy_from_slice(&CLIENT.octets());
    message[20..24].copy_from_slice(&SERVER.octets());
    message[28..34].copy_from_slice(&client.0);
    message.extend(COOKIE);
    message.extend([53, 1, OFFER, 54, 4]);
    message.extend(SERVER.octets());
    message.extend([51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0, 255]);
    message.resize(300, 0);

    let mut frame = [client.0, SERVER_MAC.0].concat();
    frame.extend([8, 0]);
    let total = (20 + 8 + message.len()) as u16;
    let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[12..16].copy_from_slice(&SERVER.octets());
    header[16..20].copy_from_slice(&Ipv4Addr::BROADCAST.octets());
    let sum = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame.extend(header);
    frame.extend([0, 67, 0, 68]);
    frame.extend((total - 20).to_be_bytes());
    // No checksum (RFC 768).
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}
