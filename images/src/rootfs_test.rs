use super::*;
use crate::progress::Silent;

/// An ELF header with one program header of the given kind.
fn elf(kind: u32) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18..20].copy_from_slice(&62u16.to_le_bytes());
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    elf[54..56].copy_from_slice(&56u16.to_le_bytes());
    elf[56..58].copy_from_slice(&1u16.to_le_bytes());
    elf[64..68].copy_from_slice(&kind.to_le_bytes());
    elf
}

fn recipe_with_one_binary() -> Recipe {
    let mut recipe = Recipe::load("default").unwrap();
    recipe.binaries.truncate(1);
    recipe
}

#[test]
fn static_programs_are_told_from_dynamic_ones_and_from_rubbish() {
    assert!(is_static_elf64(&elf(1)));
    assert!(!is_static_elf64(&elf(3)), "an interpreter");
    assert!(!is_static_elf64(b"#!/bin/sh\n"));
    assert!(!is_static_elf64(b""));
    assert!(!is_static_elf64(&elf(1)[..30]), "cut short");
    let mut wild = elf(1);
    wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(!is_static_elf64(&wild), "a table outside the file");
    let mut wild = elf(1);
    wild[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
    assert!(!is_static_elf64(&wild), "more headers than there are");
}

#[test]
fn a_missing_program_names_recipe_program_and_path() {
    let directory = tempfile::tempdir().unwrap();
    let recipe = recipe_with_one_binary();
    let error =
        crate::rootfs(directory.path(), &recipe, &directory.path().join("bin"), &mut Silent).unwrap_err();
    let text = error.to_string();
    for part in ["\"default\"", "\"gc-init\"", "bin/gc-init", "cargo xtask image"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_dynamic_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("gc-init"), elf(3)).unwrap();
    let refused = read_programs(&recipe_with_one_binary(), directory.path());
    assert!(matches!(refused, Err(RootfsError::NotAProgram { .. })));
}

#[test]
fn the_key_changes_with_every_input_of_the_image() {
    let recipe = Recipe::load("default").unwrap();
    let program = |content: &[u8]| vec![Program { path: "/x".into(), content: content.to_vec() }];
    let mut keys = vec![key(&recipe, &program(b"1")), key(&recipe, &program(b"2"))];
    let mut other = recipe.clone();
    other.packages.push("bash".into());
    keys.push(key(&other, &program(b"1")));
    let mut other = recipe.clone();
    other.symlinks.push(crate::Symlink { path: "/a".into(), target: "b".into() });
    keys.push(key(&other, &program(b"1")));
    let mut other = recipe.clone();
    other.files.push(crate::ExtraFile { path: "/a".into(), content: String::new(), executable: false });
    keys.push(key(&other, &program(b"1")));
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(key), "key {index}");
    }
    assert_eq!(key(&recipe, &program(b"1")), keys[0]);
}

#[test]
fn a_uuid_has_its_shape() {
    let uuid = uuid(&KeyBuilder::default().key());
    let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
    assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
}
