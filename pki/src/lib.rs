//! Makes certificates: an authority in a folder, and what it signs for hosts and operators. They
//! are used by `patina_daemon::tls`.
//!
//! - [`Authority`]: the folder. [`Validity`]: from when until when. [`Made`]: where the files are.
//! - [`credential`]: a certificate that two pagers share, and its key.
//! - `names`: names and addresses, checked. `files`: files that nobody else can read, and that
//!   appear whole.

mod authority;
mod files;
mod names;
mod shared;

pub use authority::{Authority, Made, PkiError, Validity};
pub use names::{Address, Name, NameError};
pub use rcgen::Error as KeyError;
pub use shared::credential;
