//! Unsafe code: vector registers, AF_VSOCK sockets, ptrace, advice on memory, clocks.
#![allow(unsafe_code, reason = "vector registers are reached by inline assembly, the rest by system calls")]

use std::{
    arch::asm,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    ptr,
    time::Duration,
};

/// Registers that are filled at most.
pub const SLOTS: usize = 32;
/// Bytes of memory for each register.
pub const SLOT_BYTES: usize = 64;

/// Which registers this CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// 16 of 16 bytes: SSE, which every x86-64 CPU has.
    Xmm,
    /// 16 of 32 bytes.
    Ymm,
    /// 32 of 64 bytes.
    Zmm,
}

impl Registers {
    /// The widest that the CPU has and the kernel allows (CPUID and XCR0).
    pub fn widest() -> Self {
        if std::is_x86_feature_detected!("avx512f") {
            Self::Zmm
        } else if std::is_x86_feature_detected!("avx") {
            Self::Ymm
        } else {
            Self::Xmm
        }
    }

    /// `xmm`, `ymm` or `zmm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xmm => "xmm",
            Self::Ymm => "ymm",
            Self::Zmm => "zmm",
        }
    }

    /// How many there are.
    pub fn count(self) -> usize {
        if self == Self::Zmm { 32 } else { 16 }
    }

    /// Bytes of each.
    pub fn bytes(self) -> usize {
        match self {
            Self::Xmm => 16,
            Self::Ymm => 32,
            Self::Zmm => 64,
        }
    }
}

/// `vmovups ymm3, [rdi + 64*3]` for each number.
macro_rules! load {
    ($move:literal $register:literal, $($n:literal)*) => {
        concat!($($move, " ", $register, $n, ", [rdi + 64*", $n, "]\n"),*)
    };
}
/// `vmovups [rsi + 64*3], ymm3` for each number.
macro_rules! store {
    ($move:literal $register:literal, $($n:literal)*) => {
        concat!($($move, " [rsi + 64*", $n, "], ", $register, $n, "\n"),*)
    };
}

/// sched_yield as often as r8 says. With r9 set `$lose` takes the upper half of register 7, as a
/// kernel does that saves less than the CPU has: the test of the test.
macro_rules! yield_loop {
    ($lose:literal) => {
        concat!(
            "
    2:
    mov eax, 24
    syscall
    dec r8
    jnz 2b
    test r9, r9
    jz 3f
    ",
            $lose,
            "
    3:
"
        )
    };
}

/// Fills `registers` from `pattern`, yields the CPU with them live, and stores them into `kept`.
pub fn hold(
    registers: Registers,
    pattern: &[u8; SLOTS * SLOT_BYTES],
    kept: &mut [u8; SLOTS * SLOT_BYTES],
    yields: u64,
    sabotage: bool,
) {
    macro_rules! hold {
        ($load:expr, $store:expr, $lose:literal, $end:literal) => {
            // SAFETY: both pointers are valid for SLOTS * SLOT_BYTES bytes, which is as far as the
            // loads and stores reach; the caller checked with CPUID and XCR0 that the registers
            // exist; every register that is written is declared (the compiler itself uses none
            // above xmm15 without AVX-512).
            unsafe {
                asm!(
                    $load, yield_loop!($lose), $store, $end,
                    in("rdi") pattern.as_ptr(), in("rsi") kept.as_mut_ptr(),
                    inout("r8") yields.max(1) => _, in("r9") u64::from(sabotage),
                    out("rax") _, out("rcx") _, out("r11") _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nostack),
                );
            }
        };
    }
    match registers {
        Registers::Xmm => hold!(
            load!("movups" "xmm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
            store!("movups" "xmm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
            "movq xmm7, xmm7",
            ""
        ),
        Registers::Ymm => hold!(
            load!("vmovups" "ymm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
            store!("vmovups" "ymm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15),
            "vmovaps xmm7, xmm7",
            "vzeroupper"
        ),
        Registers::Zmm => hold!(
            load!("vmovups" "zmm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
            store!("vmovups" "zmm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31),
            "vmovaps xmm7, xmm7",
            "vzeroupper"
        ),
    }
}

/// A stream to a vsock port of the host, non-blocking: what the host does not take at once fails.
pub fn connect_to_host(port: u32) -> io::Result<File> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_vm is plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the address is a live sockaddr_vm of that length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(File::from(socket))
}

/// Runs a program to its end under ptrace: how many system calls it made after its `execve`.
pub fn count_syscalls(command: &mut Command) -> io::Result<u64> {
    // SAFETY: between fork and exec the closure only makes one system call, which allocates
    // nothing.
    unsafe {
        command.pre_exec(|| trace(libc::PTRACE_TRACEME, 0, 0));
    }
    let child = command.spawn()?;
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let (mut stops, mut status) = (0_u64, 0);
    loop {
        // SAFETY: `status` is a live i32, which is what waitpid writes.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if !libc::WIFSTOPPED(status) {
            // Entry and exit are a stop each; exit_group has no exit.
            return Ok(stops.div_ceil(2));
        }
        let signal = match libc::WSTOPSIG(status) {
            signal if signal == libc::SIGTRAP | 0x80 => {
                stops += 1;
                0
            }
            // The stop at execve: from here on system calls are told from other traps.
            libc::SIGTRAP => {
                trace(libc::PTRACE_SETOPTIONS, pid, libc::c_long::from(libc::PTRACE_O_TRACESYSGOOD))?;
                0
            }
            signal => signal,
        };
        trace(libc::PTRACE_SYSCALL, pid, libc::c_long::from(signal))?;
    }
}

fn trace(request: libc::c_uint, pid: libc::pid_t, data: libc::c_long) -> io::Result<()> {
    // SAFETY: none of the requests made here reads or writes our memory: address is unused, data a
    // number.
    let result = unsafe { libc::ptrace(request, pid, ptr::null_mut::<libc::c_void>(), data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

static END: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

extern "C" fn note_end(_signal: libc::c_int) {
    END.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// From now on SIGTERM only sets what [`end_asked`] returns.
pub fn end_on_sigterm() -> io::Result<()> {
    // SAFETY: the handler stores one atomic, which a signal handler may.
    let before = unsafe { libc::signal(libc::SIGTERM, note_end as extern "C" fn(libc::c_int) as usize) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether SIGTERM has come.
pub fn end_asked() -> bool {
    END.load(std::sync::atomic::Ordering::Relaxed)
}

/// Asks for pages of 2 MiB where they fit: where guest kernel code is emulated, a page fault costs
/// milliseconds.
pub fn prefer_huge_pages(memory: &mut [u64]) -> io::Result<()> {
    const PAGE: usize = 4096;
    let skipped = memory.as_ptr().addr().next_multiple_of(PAGE) - memory.as_ptr().addr();
    let Some(length) = size_of_val(memory).checked_sub(skipped) else { return Ok(()) };
    let start = memory.as_mut_ptr().wrapping_byte_add(skipped);
    // SAFETY: the range is within `memory`, and the advice changes no content.
    let result = unsafe { libc::madvise(start.cast(), length / PAGE * PAGE, libc::MADV_HUGEPAGE) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// CLOCK_MONOTONIC by a system call.
pub fn monotonic_by_call() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time) };
    if result == 0 { duration(time) } else { Err(io::Error::last_os_error()) }
}

/// CLOCK_MONOTONIC as libc reads it: by the vDSO.
pub fn monotonic_by_vdso() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: libc writes one timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    if result == 0 { duration(time) } else { Err(io::Error::last_os_error()) }
}

fn duration(time: libc::timespec) -> io::Result<Duration> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let (seconds, nanos) =
        (time.tv_sec.try_into().map_err(invalid)?, time.tv_nsec.try_into().map_err(invalid)?);
    Ok(Duration::new(seconds, nanos))
}
