//! virtio-net on a tap.
//!
//! ```text
//!  guest tx queue --> one frame --write--> tap     (dropped while the gate is closed)
//!                       | source address is not the VM's: not sent
//!                       +--> if it is TCP, a reset --> guest rx queue
//!  tap --read--> one frame --> guest rx queue
//!                       | for another card: dropped
//!                       +--> ARP request for the VM's address: an answer to the tap
//! ```
//! A frame from the guest is copied out of its RAM before the module `outbound` checks it, so that
//! the frame that is sent is the frame that was checked.
//!
//! A frame from the tap is kept until the guest has buffers for it. Meanwhile the tap is not read,
//! and its queue bounds what waits. The tap is watched edge-triggered, so a guest without buffers
//! costs nothing.

mod arp;
mod frame;
mod gate;
mod inbound;
mod neighbours;
mod outbound;
mod port;
mod rx;

pub use gate::NetworkGate;
pub use neighbours::{CardOwner, Mac, Neighbours, Owner};
pub use port::{FramePort, Offloads, PortError, Tap};

use super::DeviceState;
use super::persist::RestoreError;
use super::queue::{Chain, QueueError};
use super::{DeviceError, Io, Next, VirtioDevice, read_config_bytes};
use crate::devices::event_loop::Source;
use crate::devices::{Memory, sys};
use outbound::Verdict;
use patina_control::best_effort;
use rx::Receiver;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

/// The virtio type of a network device.
pub const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_NET;
/// Size of the header in front of every frame (virtio_net_hdr_v1), bytes.
pub const HEADER_BYTES: usize = 12;
/// Longest frame with its header, bytes: 64 KiB of IP, an Ethernet header with a VLAN tag, and
/// ours.
pub const FRAME_MAX_BYTES: usize = 65_535 + 18 + HEADER_BYTES;

const RX: usize = 0;
const TX: usize = 1;
/// A guest fills its receive queue when it opens the card, which is slow if its kernel is emulated.
/// So this is enough for a 64 KiB segment in buffers of 1.5 KiB, and no more than twice that.
const QUEUE_SIZES: [u16; 2] = [128, 256];
/// An Ethernet header is the least that a frame has.
const FRAME_MIN_BYTES: usize = HEADER_BYTES + 14;

const TOKEN_PORT: u32 = 0;
const TOKEN_GATE: u32 = 1;

/// The device.
pub struct Net {
    port: Box<dyn FramePort>,
    gate: NetworkGate,
    owner: Owner,
    next_owner: CardOwner,
    receiver: Receiver,
    chain: Chain,
    outgoing: Vec<u8>,
}

impl Net {
    /// The network card of this VM. The gate is open, except in a restored card; see [`Net::gate`].
    pub fn new(port: Box<dyn FramePort>, owner: Owner) -> Result<Self, PortError> {
        let (gate, receiver, chain) = (NetworkGate::new()?, Receiver::default(), Chain::default());
        let next_owner = CardOwner::default();
        Ok(Self { port, gate, owner, next_owner, receiver, chain, outgoing: Vec::new() })
    }

    /// Opens and closes the network, from other threads.
    pub fn gate(&self) -> NetworkGate {
        self.gate.clone()
    }

    /// Changes the owner, from other threads.
    pub fn owner(&self) -> CardOwner {
        self.next_owner.clone()
    }

    fn receive(&mut self, io: &mut Io<'_>) -> Result<Next, DeviceError> {
        let mergeable = io.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.receiver.run(io, RX, (&*self.port, &self.gate, &self.owner), mergeable)
    }

    fn transmit(&mut self, io: &mut Io<'_>) -> Result<Next, DeviceError> {
        let Self { port, gate, owner, receiver, chain, outgoing, .. } = self;
        let next = io.serve(TX, chain, |memory, chain| {
            if gate.is_open() {
                let frame = copy_out(memory, chain, outgoing).map_err(DeviceError::queue(TX))?;
                send(frame, &**port, owner, receiver);
            }
            Ok(0)
        })?;
        // While there is more to send, the answers wait for its end, or for any event of the
        // receive queue.
        if next == Next::Wait && self.receiver.has_answers() { self.receive(io) } else { Ok(next) }
    }
}

/// Copies a frame into `buffer`; what cannot be a frame comes out empty.
fn copy_out<'b>(memory: &Memory, chain: &Chain, buffer: &'b mut Vec<u8>) -> Result<&'b mut [u8], QueueError> {
    let length = chain.readable_bytes() as usize;
    if !(FRAME_MIN_BYTES..=FRAME_MAX_BYTES).contains(&length) {
        return Ok(&mut []);
    }
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let (frame, _) = buffer.split_at_mut(length);
    chain.read(memory, 0, frame)?;
    Ok(frame)
}

/// Sends one frame. Drops it if it is not the VM's own, or if the port is full or refuses it, as a
/// network may.
fn send(frame: &mut [u8], port: &dyn FramePort, owner: &Owner, receiver: &mut Receiver) {
    match outbound::judge(frame, owner) {
        Verdict::Pass => {}
        Verdict::PassTo(mac) => {
            if let Some(to) = frame.get_mut(HEADER_BYTES..HEADER_BYTES + mac.len()) {
                to.copy_from_slice(&mac);
            }
        }
        Verdict::Drop => return,
        Verdict::Answer(answer) => return receiver.answer(answer),
    }
    best_effort(
        rustix::io::write(port.fd(), frame),
        "as a network may, it loses what the port does not take",
    );
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
        ]
        .iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..6].copy_from_slice(&self.owner.mac);
        config[6] = VIRTIO_NET_S_LINK_UP as u8;
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceError> {
        let has = |bit: u32| features & 1 << bit != 0;
        let offloads =
            Offloads { checksum: has(VIRTIO_NET_F_GUEST_CSUM), tso4: has(VIRTIO_NET_F_GUEST_TSO4) };
        self.port.set_offloads(offloads).map_err(DeviceError::io("set the offloads of the tap"))
    }

    fn queue_event(&mut self, io: &mut Io<'_>, index: usize) -> Result<Next, DeviceError> {
        if index == TX { self.transmit(io) } else { self.receive(io) }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![
            Source { fd: self.port.fd(), token: TOKEN_PORT, edge: true },
            Source { fd: sys::borrow(self.gate.changed()), token: TOKEN_GATE, edge: false },
        ]
    }

    fn source_event(&mut self, io: Option<&mut Io<'_>>, token: u32) -> Result<Next, DeviceError> {
        if token == TOKEN_GATE {
            best_effort(self.gate.changed().read(), "nothing to read means that the change was already seen");
            if self.gate.take_opened() {
                self.receiver.discard(&*self.port);
            }
        }
        // An edge of the port that comes while the device is not active is not lost: activation
        // kicks the receive queue, which reads the port.
        io.map_or(Ok(Next::Wait), |io| self.receive(io))
    }

    fn reset(&mut self) {
        self.receiver = Receiver::default();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net
    }

    /// The gate is closed afterwards: a clone must not send before it has its own identity. A frame
    /// that waited for the guest's buffers stays with the parent.
    fn restore(&mut self, state: &DeviceState, _is_active: bool) -> Result<(), RestoreError> {
        if *state != DeviceState::Net {
            return Err(state.is_not("net"));
        }
        self.receiver = Receiver::default();
        if let Some(owner) = self.next_owner.take() {
            self.owner = owner;
        }
        self.gate.shut_anew();
        Ok(())
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
