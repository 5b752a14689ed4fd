//! The names of files.

use crate::manifest::LayerId;
use std::{
    ffi::{OsStr, OsString},
    path::{self, Path, PathBuf},
};

pub(super) const MANIFEST: &str = "manifest";
pub(super) const STATE: &str = "state";
const LAYER_PREFIX: &str = "layer-";
/// A layer while it is written: its id follows from its content.
pub(super) const LAYER_UNFINISHED: &str = "layer-unfinished";
/// The name of a directory that is being made or removed begins so.
pub const UNFINISHED_PREFIX: &str = ".patina-snapshot-unfinished-";

pub(super) fn layer(id: LayerId) -> String {
    format!("{LAYER_PREFIX}{id}")
}

/// Whether a file in a snapshot can have this name.
pub(super) fn is_part(name: &OsStr) -> bool {
    let is_id =
        |id: &str| id.len() == 64 && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    name.to_str().is_some_and(|name| {
        [MANIFEST, STATE].contains(&name) || name.strip_prefix(LAYER_PREFIX).is_some_and(is_id)
    })
}

pub(super) fn is_unfinished(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(UNFINISHED_PREFIX.as_bytes())
}

/// The directory that a place is in, and its name there. None: the path names no place in a
/// directory.
pub(super) fn split(place: &Path) -> Option<(PathBuf, OsString)> {
    let place = path::absolute(place).ok()?;
    Some((place.parent()?.to_owned(), place.file_name()?.to_owned()))
}
