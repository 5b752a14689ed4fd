//! The program's entry point. It answers `gc vmid`, `gc my-ip` and `gc ismaster` with one open, one
//! read, one write and an exit. Starting the C library would take twelve more system calls and
//! twenty more pages. All other verbs, and all errors, jump to the C library's own start.
//!
//! Nothing here may call the C library, panic, or use thread-local storage: none of it exists yet.
//! Texts are numbers ([`packed`]), and the file's name lies next to the code, so that only one page
//! of the program is touched.
#![allow(unsafe_code, reason = "a program's entry point and its system calls")]

use core::arch::{asm, naked_asm};
use core::mem::MaybeUninit;

const SYS_READ: usize = 0;
const SYS_WRITE: usize = 1;
const SYS_OPEN: usize = 2;
const SYS_EXIT_GROUP: usize = 231;

const SIZE_BYTES: usize = patina_abi::local::IDENTITY_MAX_BYTES;

/// A word of up to eight bytes as a number.
const fn packed(word: &[u8]) -> u64 {
    let (mut number, mut i) = (0, 0);
    while i < word.len() {
        number |= (word[i] as u64) << (8 * i);
        i += 1;
    }
    number
}

const VMID: u64 = packed(b"vmid");
const MY_IP: u64 = packed(b"my-ip");
const ISMASTER: u64 = packed(b"ismaster");
/// Keys of the identity's lines with their `=`.
const VMID_KEY: u64 = packed(b"vmid=");
const IP_KEY: u64 = packed(b"ip=");

/// Where the kernel starts the program: the stack holds argc and argv, rdx what `_start` wants from
/// a dynamic loader. The file's name follows the code; a test holds it against the ABI's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn gc_entry() -> ! {
    naked_asm!(
        "mov rdi, rsp",
        "push rdx",
        "push rdx",
        "lea rsi, [rip + 2f]",
        "call {quick}",
        "pop rdx",
        "pop rdx",
        "jmp _start",
        "2: .asciz \"/run/gridcentric/identity\"",
        quick = sym quick,
    )
}

/// One system call.
///
/// # Safety
/// The arguments must be valid for that call.
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize) -> isize {
    let result;
    // SAFETY: the kernel changes rax, rcx and r11 only, and memory as the caller has checked.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// The C string at `text` as a number; none when it is longer than eight bytes.
///
/// # Safety
/// `text` points to a C string.
unsafe fn packed_argument(text: *const u8) -> Option<u64> {
    let (mut number, mut i) = (0_u64, 0);
    loop {
        // SAFETY: all bytes before this one were not the string's end.
        let byte = unsafe { *text.add(i) };
        if byte == 0 {
            return Some(number);
        }
        if i == 8 {
            return None;
        }
        number |= u64::from(byte) << (8 * i);
        i += 1;
    }
}

/// Answers and exits if it can.
///
/// # Safety
/// `stack` is the stack pointer as the kernel left it: argc, then argc pointers to C strings.
/// `file` is a C string.
unsafe extern "C" fn quick(stack: *const usize, file: *const u8) {
    // SAFETY: the kernel has put argc there, and two arguments when it is 2, which are C strings.
    let verb = unsafe {
        if *stack != 2 {
            return;
        }
        packed_argument(*stack.add(2) as *const u8)
    };
    let (key, prints) = match verb {
        Some(VMID) => (VMID_KEY, true),
        Some(MY_IP) => (IP_KEY, true),
        Some(ISMASTER) => (VMID_KEY, false),
        _ => return,
    };
    let mut buffer = MaybeUninit::<[u8; SIZE_BYTES]>::uninit();
    // SAFETY: the kernel writes at most the buffer's size and says how much, and that much is
    // initialised. The descriptor goes with the process.
    let text = unsafe {
        let fd = syscall(SYS_OPEN, file as usize, 0, 0);
        if fd < 0 {
            return;
        }
        let length = syscall(SYS_READ, fd as usize, buffer.as_mut_ptr() as usize, SIZE_BYTES);
        if length < 0 {
            return;
        }
        core::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length as usize)
    };
    let Some((value, length)) = value_of(text, key) else { return };
    // SAFETY: `value` has `length` bytes, its newline included; exit_group does not return.
    unsafe {
        if prints && syscall(SYS_WRITE, 1, value.as_ptr() as usize, length) != length as isize {
            return;
        }
        let is_master = length == 2 && value.first() == Some(&b'0');
        syscall(SYS_EXIT_GROUP, usize::from(!prints && !is_master), 0, 0);
    }
}

/// The text from `key`'s value on, and that value's length with its newline.
fn value_of(text: &[u8], key: u64) -> Option<(&[u8], usize)> {
    let mut rest = text;
    loop {
        // The start of the line up to its `=`; a longer name than a key's is none of ours.
        let (mut name, mut i) = (0_u64, 0);
        while i < 8 {
            let byte = *rest.get(i)?;
            name |= u64::from(byte) << (8 * i);
            i += 1;
            if byte == b'=' || byte == b'\n' {
                break;
            }
        }
        let mut end = 0;
        while *rest.get(end)? != b'\n' {
            end += 1;
        }
        if name == key {
            return Some((rest.get(i..)?, end + 1 - i));
        }
        rest = rest.get(end + 1..)?;
    }
}
