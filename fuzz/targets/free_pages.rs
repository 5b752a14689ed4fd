//! The memory of a frozen guest, whatever is in it, as what says which of its pages are free.
//!
//! An input is the number of words that are written (two bytes), each with its address (four bytes)
//! and its content (eight bytes), and the kernel's note: as it is, and as the text of a note that
//! passes the first checks.

#![no_main]

use libfuzzer_sys::fuzz_target;
use patina_abi::link::Vmcoreinfo;
use std::{fs::File, os::unix::fs::FileExt as _};
use vmm::{
    free_pages::{find, image::Image},
    memory::layers::{Layers, new_layer},
};

const RAM: u64 = 16 << 20;
const PAGE_BYTES: u64 = 4096;
/// Where the note is.
const NOTE: u64 = 0x5000;
/// The most ranges that are asked for.
const MOST: usize = 64;
const NAME: &[u8] = b"VMCOREINFO\0\0";

fuzz_target!(|bytes: &[u8]| {
    let Some((count, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (words, _) = rest.as_chunks::<12>();
    let words = &words[..words.len().min(u16::from_le_bytes(*count).into())];
    let note = &rest[12 * words.len()..];
    check(words, note);
    let length = u32::try_from(note.len()).expect("a short note").to_le_bytes();
    check(words, &[&11_u32.to_le_bytes(), &length, &[0; 4], NAME, note].concat());
});

/// What is found is RAM, whole pages, in order, and no more than what was asked for.
fn check(words: &[[u8; 12]], note: &[u8]) {
    let memory = memory(words, note);
    let layers = Layers::whole(memory, RAM);
    let at = Vmcoreinfo { address: NOTE, bytes: u32::try_from(note.len()).expect("a short note") };
    let Ok(found) = find(&Image::new(&layers), at, MOST) else { return };
    assert!(found.len() <= MOST);
    for range in &found {
        assert!(range.start < range.end && range.end <= RAM, "{range:x?}");
        assert!(range.start % PAGE_BYTES == 0 && range.end % PAGE_BYTES == 0, "{range:x?}");
    }
    assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start), "{found:x?}");
}

fn memory(words: &[[u8; 12]], note: &[u8]) -> File {
    let memory = new_layer(RAM).expect("a memfd");
    for word in words {
        let (address, content) = word.split_first_chunk::<4>().expect("twelve bytes");
        let address = u64::from(u32::from_le_bytes(*address)) % (RAM - 8);
        memory.write_all_at(content, address).expect("a word");
    }
    memory.write_all_at(note, NOTE).expect("a note");
    memory
}
