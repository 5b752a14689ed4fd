//! The files of earlier snapshots, as files of a later one.

use super::{
    error::{FileError, OpenError},
    layer::Stamp,
    names,
    snapshot::{KnownLayer, Snapshot},
    steps::change,
    unfinished::Unfinished,
};
use crate::manifest::Layer;
use patina_control::best_effort;
use rustix::{
    fs::{AtFlags, linkat},
    io::Errno,
};
use std::{io, path::PathBuf, sync::Arc};

/// The snapshots that are asked for layers, each opened once.
#[derive(Default)]
pub(super) struct Earlier(Vec<(PathBuf, Option<Snapshot>)>);

impl Earlier {
    /// Makes a known layer's file a file of the new snapshot, too. None: it is not there any more,
    /// is not the same any more, or is on another file system, so that it must be written.
    ///
    /// # Errors
    /// A directory or file cannot be changed.
    pub(super) fn link(
        &mut self,
        known: &KnownLayer,
        to: &Unfinished<'_>,
        bytes: u64,
    ) -> Result<Option<Arc<Layer>>, FileError> {
        let Some(from) = self.open(known) else { return Ok(None) };
        let has_it = |number: &usize| {
            let same = |layer: Result<Option<KnownLayer>, OpenError>| {
                layer.is_ok_and(|layer| layer.as_ref() == Some(known))
            };
            same(from.known_layer(*number))
        };
        let layer = (0..from.layers().len()).find(has_it).and_then(|number| from.layer(number));
        let Some(layer) = layer.filter(|layer| layer.bytes() == bytes) else { return Ok(None) };
        let name = names::layer(known.id);
        let path = to.path().join(&name);
        let link = || match linkat(from.folder(), &name, to.folder(), &name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // Another layer has the same content.
            Err(Errno::EXIST) => Ok(true),
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::NOENT | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(io::Error::from(error)),
        };
        if !change("link", &path, link)? {
            return Ok(None);
        }
        // It is the file that was looked at, not one that got its name meanwhile.
        let linked = to.folder().file(&name).map_err(FileError::at("open", &path))?;
        if Stamp::of(&linked, &path)?.inode == known.stamp.inode {
            let demand = names::demand(known.id);
            best_effort(
                linkat(from.folder(), &demand, to.folder(), &demand, AtFlags::empty()),
                "most layers have none, and it is advice only",
            );
            return Ok(Some(layer.layer().clone()));
        }
        change("remove", &path, || to.folder().remove_file(&name))?;
        Ok(None)
    }

    fn open(&mut self, known: &KnownLayer) -> Option<&Snapshot> {
        let at = self.0.iter().position(|(place, _)| *place == known.place).unwrap_or_else(|| {
            self.0.push((known.place.clone(), Snapshot::open(&known.place).ok()));
            self.0.len() - 1
        });
        self.0.get(at)?.1.as_ref()
    }
}
