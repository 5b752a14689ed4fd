//! The header of a vsock packet (virtio 1.2, 5.10.6).

/// Size of a header, bytes.
pub const HEADER_BYTES: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// The type of a stream's packets; there are no others here.
pub const TYPE_STREAM: u16 = 1;
/// SHUTDOWN: the sender receives no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender sends no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// SHUTDOWN in both directions.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for; numbers on the wire.
pub mod op {
    /// Opens a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts it.
    pub const RESPONSE: u16 = 2;
    /// Refuses or breaks it.
    pub const RST: u16 = 3;
    /// Ends one or both directions.
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Tells how much may be sent.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A header, field by field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's address.
    pub src_cid: u64,
    /// The receiver's address.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    /// See [`TYPE_STREAM`].
    pub kind: u16,
    /// See [`op`].
    pub op: u16,
    /// Depends on the op.
    pub flags: u32,
    /// Bytes that the sender keeps for what it receives.
    pub buf_alloc: u32,
    /// Bytes that the sender's reader has taken so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let (words, _) = bytes.as_chunks();
        let word = |index: usize| words.get(index).map_or(0, |word| u32::from_le_bytes(*word));
        let long = |index: usize| u64::from(word(index)) | u64::from(word(index + 1)) << 32;
        Self {
            src_cid: long(0),
            dst_cid: long(2),
            src_port: word(4),
            dst_port: word(5),
            len: word(6),
            kind: (word(7) & 0xffff) as u16,
            op: (word(7) >> 16) as u16,
            flags: word(8),
            buf_alloc: word(9),
            fwd_cnt: word(10),
        }
    }

    /// The header as it is written.
    pub fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The answer to a packet that belongs to no connection; none to a reset, which is never
    /// answered.
    pub fn refusal(&self) -> Option<Self> {
        (self.op != op::RST).then_some(Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        })
    }
}
