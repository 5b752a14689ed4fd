//! The names of files.

use crate::manifest::LayerId;
use std::{
    ffi::{OsStr, OsString},
    fmt::Display,
    path::{self, Path, PathBuf},
};

pub(super) const MANIFEST: &str = "manifest";
pub(super) const STATE: &str = "state";
const LAYER_PREFIX: &str = "layer-";
/// A layer while it is written: its id follows from its content.
pub(super) const LAYER_UNFINISHED: &str = "layer-unfinished";
const DEMAND_PREFIX: &str = "demand-";
/// What was demanded of a layer, while it is written.
pub(super) const DEMAND_UNFINISHED: &str = "demand-unfinished";
/// The name of a directory that is being made or removed begins so.
pub const UNFINISHED_PREFIX: &str = ".patina-snapshot-unfinished-";

pub(super) fn layer(id: LayerId) -> String {
    format!("{LAYER_PREFIX}{id}")
}

pub(super) fn demand(id: impl Display) -> String {
    format!("{DEMAND_PREFIX}{id}")
}

pub(super) fn is_demand(name: &str) -> bool {
    name.starts_with(DEMAND_PREFIX)
}

/// The id that is in the name of a layer's file.
pub(super) fn id_of_layer(name: &OsStr) -> Option<&str> {
    id_after(LAYER_PREFIX, name.to_str()?)
}

fn id_after<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    let is_id =
        |id: &&str| id.len() == 64 && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    name.strip_prefix(prefix).filter(is_id)
}

/// Whether a file in a snapshot can have this name.
pub(super) fn is_part(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        let has_id = |prefix: &&str| id_after(prefix, name).is_some();
        [MANIFEST, STATE, DEMAND_UNFINISHED].contains(&name)
            || [LAYER_PREFIX, DEMAND_PREFIX].iter().any(has_id)
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
