//! What was spent and counted and is not in the store yet, in memory that outlives the process.
//!
//! A file is mapped into memory, and in it stand counters that are raised before a check is answered, at the price of a
//! store to memory. The pages are the kernel's: whatever kills the process, they stay, and the next process reads them
//! ([`Opened::left`]). Only a crash of the whole machine takes them; so the file names the boot in which it was written,
//! and is not believed in another.
//!
//! Two kinds of counters: units spent of a lease, known to the store by their number, and checks of a key, an hour and a
//! verdict. A counter is raised by whoever holds the lock of the meter that it belongs to, and by nobody else, so a plain
//! load and store do.

mod file;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::domain::{KeyId, Verdict};

pub use file::{Left, LeftUsage};

/// Times that somebody asks for a counter in vain before it is tried again to make the file larger.
const GROW_AGAIN_AFTER: u32 = 10_000;

/// Where a process may leave something for the next, and the next finds it.
#[derive(Debug)]
pub struct Opened {
    path: PathBuf,
    file: File,
}

/// The counters of this process.
#[derive(Debug, Default)]
pub struct Journal {
    spends: Mutex<Pool<SpendCell>>,
    /// The numbers of those that are never free again.
    retired: Mutex<HashSet<u32>>,
    usage: Mutex<Pool<UsageCell>>,
    growth: Option<Mutex<file::Growth>>,
}

/// Counters of one kind that are free.
struct Pool<T> {
    used_before: Vec<T>,
    fresh: file::Cells<T>,
    /// How often there was none since the file could last not grow.
    missed: Option<u32>,
}

/// Units spent of a lease. It never goes down, also where it comes to be another lease's.
#[derive(Clone, Copy, Debug)]
pub struct SpendCell {
    counter: &'static AtomicU64,
    number: u32,
}

/// Checks of one key, hour and verdict.
#[derive(Clone, Copy, Debug)]
pub struct UsageCell(&'static file::Counts);

impl Opened {
    /// Opens the file at `path`, and makes it where there is none. Fails where it can't be written, where it is something else
    /// than a journal, where another process uses it, or where the system doesn't tell its boots apart.
    pub fn open(path: &Path) -> io::Result<Self> {
        file::boot_id()?;
        let path = file::resolve(path)?;
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(io::Error::other("it is no file"));
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.try_lock().map_err(|error| io::Error::other(format!("another process uses it: {error}")))?;
        file::require_journal(&file, &path)?;
        Ok(Self { path, file })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a process before this one left in it. Absent where there is nothing, or nothing that can be believed.
    pub fn left(&self) -> io::Result<Option<Left>> {
        file::read(&self.file)
    }

    /// Has nobody believe what was left, where it was settled and no new journal can be begun.
    pub fn forget(&self) -> io::Result<()> {
        file::forget(&self.file)
    }

    /// Forgets what was left, and begins anew for this process.
    pub fn begin(&self, incarnation: [u8; 16]) -> io::Result<Journal> {
        // Another file in the place of the old one, which is locked until it is: a file that is mapped must not shrink.
        let mut growth = file::Growth::begin(&self.path, incarnation)?;
        Ok(Journal {
            spends: Mutex::new(Pool::new(growth.spends()?)),
            retired: Mutex::default(),
            usage: Mutex::new(Pool::new(growth.usage()?)),
            growth: Some(Mutex::new(growth)),
        })
    }
}

impl Journal {
    /// Whether anything is kept.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.growth.is_some()
    }

    /// A counter for a lease. Absent where none is kept, or the file can't grow: the lease is then uncertain after a crash.
    pub fn spend_cell(&self) -> Option<SpendCell> {
        self.take(&self.spends, file::Growth::spends)
    }

    /// The store knows no lease of this counter any more, unless it is retired.
    pub fn free_spend_cell(&self, cell: SpendCell) {
        if !lock(&self.retired).contains(&cell.number) {
            lock(&self.spends).used_before.push(cell);
        }
    }

    /// Nobody knows whether the store has granted units that are counted here: whoever had the counter next would seem to spend
    /// them. It stays what it is for as long as the process lives.
    pub fn retire_spend_cell(&self, cell: SpendCell) {
        lock(&self.retired).insert(cell.number);
    }

    /// Whether that is said of a counter: in another slot, another is to be used.
    pub fn is_retired(&self, cell: SpendCell) -> bool {
        lock(&self.retired).contains(&cell.number)
    }

    /// A counter of checks, at 0. Absent where none is kept, or the file can't grow.
    pub fn usage_cell(&self, key: KeyId, hour: i64, verdict: Verdict) -> Option<UsageCell> {
        let cell = self.take(&self.usage, file::Growth::usage)?;
        cell.0.begin(key, hour, verdict);
        Some(cell)
    }

    /// These are in the store.
    pub fn free_usage_cells(&self, cells: impl IntoIterator<Item = UsageCell>) {
        let mut pool = lock(&self.usage);
        pool.used_before.extend(cells.into_iter().inspect(|cell| cell.0.end()));
    }

    fn take<T>(
        &self,
        pool: &Mutex<Pool<T>>,
        grow: impl Fn(&mut file::Growth) -> io::Result<file::Cells<T>>,
    ) -> Option<T> {
        let growth = self.growth.as_ref()?;
        let mut pool = lock(pool);
        if let Some(cell) = pool.next() {
            return Some(cell);
        }
        if let Some(missed) = &mut pool.missed
            && *missed < GROW_AGAIN_AFTER
        {
            *missed += 1;
            return None;
        }
        match grow(&mut lock(growth)) {
            Ok(fresh) => *pool = Pool::new(fresh),
            Err(error) => {
                if pool.missed.replace(0).is_none() {
                    tracing::warn!(%error, "the journal cannot grow: what it has no room for is lost, or uncertain, if the process is killed");
                }
            }
        }
        pool.next()
    }
}

impl<T> Pool<T> {
    fn new(fresh: file::Cells<T>) -> Self {
        Self { used_before: Vec::new(), fresh, missed: None }
    }

    fn next(&mut self) -> Option<T> {
        self.used_before.pop().or_else(|| self.fresh.next())
    }
}

impl SpendCell {
    /// What the store knows it by.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.number
    }

    /// Units spent so far, of all leases that it was for.
    #[must_use]
    pub fn value(self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }

    /// Counts units, before they are known to be spent to anybody else.
    pub fn spend(self, units: u64) {
        self.counter.store(self.value().wrapping_add(units), Ordering::Release);
    }
}

impl UsageCell {
    /// How many checks, and the credits that they cost, there have been.
    pub fn count(self, requests: u64, credits: u64) {
        self.0.credits.store(credits, Ordering::Release);
        self.0.requests.store(requests, Ordering::Release);
    }

    /// From now on part of this flush, whose number is not 0.
    pub fn mark(self, flush: u64) {
        self.0.flush.store(flush, Ordering::Release);
    }
}

impl<T: 'static> Default for Pool<T> {
    fn default() -> Self {
        Self::new(Box::new(std::iter::empty()))
    }
}

impl<T> std::fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("used_before", &self.used_before.len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
