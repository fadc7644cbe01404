//! The lock that keeps a second process off the database.
//!
//! SQLite lets several processes write one file in turn; Tollgate does not, because each keeps budgets and keys in
//! memory. So whoever opens the store first takes an advisory lock on a file beside it, which the system lets go of
//! when the process ends, however it ends. The file stays behind, since removing it would let two processes lock two
//! files of one name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::OpenError;

/// Held while the file is open.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock of this database, or says who has it.
    pub(super) fn take(database: &Path) -> Result<Self, OpenError> {
        let path = path_beside(database);
        let failed = |error: io::Error| OpenError::from_io(&path, &error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::Locked { path: database.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Who holds it is for people to read; it may be missing, as on a full disk, and the lock holds all the same.
        let told = file.set_len(0).and_then(|()| file.rewind());
        if told.and_then(|()| writeln!(file, "{}", std::process::id())).is_err() {
            tracing::debug!(path = %path.display(), "the lock file does not tell who holds it");
        }
        Ok(Self(file))
    }

    /// Lets go of it.
    pub(super) fn release(self) {
        // Closing the file lets go of the lock.
        drop(self.0);
    }
}

fn path_beside(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    PathBuf::from(path)
}

/// The process that took the lock, as it noted itself.
fn holder(file: &mut File) -> String {
    let mut noted = String::new();
    let read = file.take(20).read_to_string(&mut noted);
    match noted.trim().parse::<u32>() {
        Ok(pid) if read.is_ok() => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}
