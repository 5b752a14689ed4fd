//! Gives the kernel randomness that it credits as entropy, and has it used at once.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// How many bytes of randomness are given at a time: as many as the kernel's generator has.
pub const SEED_BYTES: usize = 32;

/// `_IOW('R', 3, int[2])` and `_IO('R', 7)` of linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// The kernel's rand_pool_info, with a buffer of our size.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    buffer_bytes: libc::c_int,
    buffer: [u8; SEED_BYTES],
}

const _: () = {
    assert!(size_of::<PoolInfo>() == 8 + SEED_BYTES);
    // Of both numbers only the first holds a size, that of two int.
    assert!(RNDADDENTROPY == 1 << 30 | 8 << 16 | (b'R' as libc::c_ulong) << 8 | 3);
    assert!(RNDRESEEDCRNG == (b'R' as libc::c_ulong) << 8 | 7);
};

/// The kernel's generator.
#[derive(Debug)]
pub struct Generator(OwnedFd);

impl Generator {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open("/dev/urandom", flags, Mode::empty())?))
    }

    /// Mixes `seed` into the kernel's pool, counted as full entropy, and reseeds the generator:
    /// what programs read from here on is not what another machine with the same memory reads.
    ///
    /// # Errors
    /// The kernel's; the caller must be root.
    pub fn reseed(&self, seed: [u8; SEED_BYTES]) -> io::Result<()> {
        let info = PoolInfo {
            entropy_bits: 8 * SEED_BYTES as libc::c_int,
            buffer_bytes: SEED_BYTES as libc::c_int,
            buffer: seed,
        };
        // SAFETY: the kernel reads the header and as many bytes behind it as that says, which are
        // there.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), RNDADDENTROPY as _, &raw const info) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes no argument.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), RNDRESEEDCRNG as _, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
