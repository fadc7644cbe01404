//! The file: a head of one page, and segments of one kind of counters each. Numbers are as the machine writes them, because
//! the file is never read on another.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vmap::MapMut;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{SpendCell, UsageCell};
use crate::domain::{KeyId, Verdict};

/// What the file begins with. Another layout has another number.
const MAGIC: [u8; 16] = *b"tollgate spent 1";
/// What is in the place of [`MAGIC`] where nothing in the file counts any more.
const FORGOTTEN: [u8; 16] = *b"tollgate spent 0";
/// What every journal begins with, of whatever layout.
const FAMILY: &[u8] = b"tollgate spent ";
const HEAD_BYTES: usize = 4_096;
const SEGMENT_BYTES: usize = 2 << 20;
const SEGMENT_LENGTH: u64 = 2 << 20;
const WORD_BYTES: usize = 8;
/// Words of a segment, its first [`SEGMENT_HEAD_WORDS`] included.
const SEGMENT_WORDS: usize = SEGMENT_BYTES / WORD_BYTES;
/// As many as those of a [`Counts`], so that both kinds begin at the same place.
const SEGMENT_HEAD_WORDS: usize = 8;
/// Two gigabytes: more keys in one second than a process can check.
const SEGMENTS_MAX: usize = 1_024;

const KIND_SPENDS: u64 = 1;
const KIND_USAGE: u64 = 2;

/// The first bytes of the file.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Head {
    magic: [u8; 16],
    boot_id: [u8; 36],
    incarnation: [u8; 16],
}

/// Checks of one key, hour and verdict. In use where `requests` is not 0.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub(super) struct Counts {
    key: [AtomicU64; 2],
    hour_and_verdict: AtomicU64,
    /// 0 while it is still counted in.
    pub(super) flush: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) credits: AtomicU64,
    /// So that each has a line of the processor's cache for itself.
    spare: [AtomicU64; 2],
}

/// The same as it is read back.
#[derive(Debug, FromBytes, Immutable)]
#[repr(C)]
struct CountsLeft {
    key: [u8; 16],
    hour_and_verdict: u64,
    flush: u64,
    requests: u64,
    credits: u64,
    spare: [u64; 2],
}

/// What a process left.
#[derive(Debug)]
pub struct Left {
    /// Which process.
    pub incarnation: [u8; 16],
    /// Units by the number of their counter. One that is not named is 0.
    pub spends: HashMap<u32, u64>,
    /// Checks.
    pub usage: Vec<LeftUsage>,
}

/// Checks that were counted, and may or may not be in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftUsage {
    /// The flush that they were taken out for; 0 where it did not come to that.
    pub flush: u64,
    /// Whose.
    pub key: KeyId,
    /// Number of the hour since 1970.
    pub hour: i64,
    /// How they ended.
    pub verdict: Verdict,
    /// How many.
    pub requests: u64,
    /// Credits charged for them, in cost units.
    pub credits: u64,
}

/// Counters that come to be as they are asked for.
pub(super) type Cells<T> = Box<dyn Iterator<Item = T> + Send + Sync>;

/// The file as it grows.
#[derive(Debug)]
pub(super) struct Growth {
    file: File,
    segments: usize,
    /// The same file once more: a mapping keeps the file that it was made from open, and a lock on that would outlive the journal.
    _lock: File,
}

impl Counts {
    pub(super) fn begin(&self, key: KeyId, hour: i64, verdict: Verdict) {
        let (upper, lower) = key.as_bytes().split_at(8);
        for (word, half) in self.key.iter().zip([upper, lower]) {
            word.store(u64::from_ne_bytes(half.try_into().unwrap_or_default()), Ordering::Relaxed);
        }
        self.hour_and_verdict.store((hour << 8).cast_unsigned() | u64::from(verdict.number()), Ordering::Relaxed);
        self.flush.store(0, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.requests.store(0, Ordering::Release);
    }
}

impl Growth {
    /// A file with nothing in it, in the place of `path`, locked from its first moment.
    pub(super) fn begin(path: &Path, incarnation: [u8; 16]) -> io::Result<Self> {
        let new = path.with_added_extension("new");
        let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let lock = File::open(&new)?;
        lock.try_lock().map_err(|error| io::Error::other(format!("`{}`: {error}", new.display())))?;
        let head = Head { magic: MAGIC, boot_id: boot_id()?, incarnation };
        file.write_all_at(head.as_bytes(), 0)?;
        std::fs::rename(&new, path)?;
        Ok(Self { file, segments: 0, _lock: lock })
    }

    pub(super) fn spends(&mut self) -> io::Result<Cells<SpendCell>> {
        let first = u32::try_from(self.segments * SEGMENT_WORDS).map_err(io::Error::other)?;
        let words = <[AtomicU64]>::mut_from_bytes(self.segment(KIND_SPENDS)?).map_err(|_| misaligned())?;
        let words: &'static [AtomicU64] = words;
        let numbered = (first..).zip(words).skip(SEGMENT_HEAD_WORDS);
        Ok(Box::new(numbered.map(|(number, counter)| SpendCell { counter, number })))
    }

    pub(super) fn usage(&mut self) -> io::Result<Cells<UsageCell>> {
        let counts = <[Counts]>::mut_from_bytes(self.segment(KIND_USAGE)?).map_err(|_| misaligned())?;
        let counts: &'static [Counts] = counts;
        Ok(Box::new(counts.iter().skip(1).map(UsageCell)))
    }

    /// Makes the file longer by a segment, and maps it for as long as the process lives. Its room on the disk is taken first: a
    /// write to memory that finds no room would end the process.
    fn segment(&mut self, kind: u64) -> io::Result<&'static mut [u8]> {
        if self.segments >= SEGMENTS_MAX {
            return Err(io::Error::other("it is as large as it may be"));
        }
        let offset = HEAD_BYTES + self.segments * SEGMENT_BYTES;
        self.reserve(offset)?;
        let map = MapMut::with_options().write().offset(offset).len(SEGMENT_BYTES).map(&self.file);
        let map = Box::leak(Box::new(map.map_err(io::Error::other)?));
        self.file.write_all_at(&kind.to_ne_bytes(), u64::try_from(offset).map_err(io::Error::other)?)?;
        self.segments += 1;
        Ok(map)
    }

    fn reserve(&self, offset: usize) -> io::Result<()> {
        let place = u64::try_from(offset).map_err(io::Error::other)?;
        match fallocate(&self.file, FallocateFlags::empty(), place, SEGMENT_LENGTH) {
            Err(Errno::OPNOTSUPP) => self.file.write_all_at(&vec![0; SEGMENT_BYTES], place),
            result => Ok(result?),
        }
    }
}

fn misaligned() -> io::Error {
    io::Error::other("the mapping does not begin where a counter may")
}

/// The path without links, so that one file has one journal in its place, whatever name it goes by.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = path.file_name().ok_or_else(|| io::Error::other("it has no name"))?;
            Ok(folder.canonicalize()?.join(name))
        }
        found => found,
    }
}

/// Refuses what is something else, and what was replaced by another process between being opened and locked.
pub(super) fn require_journal(file: &File, path: &Path) -> io::Result<()> {
    let (here, there) = (file.metadata()?, path.metadata()?);
    if (here.dev(), here.ino()) != (there.dev(), there.ino()) {
        return Err(io::Error::other("another process has just replaced it"));
    }
    let mut head = [0; MAGIC.len()];
    let begins_so = file.read_exact_at(&mut head, 0).is_ok() && head.starts_with(FAMILY);
    if here.len() == 0 || begins_so { Ok(()) } else { Err(io::Error::other("it is no journal, and stays as it is")) }
}

pub(super) fn forget(file: &File) -> io::Result<()> {
    file.write_all_at(&FORGOTTEN, 0)?;
    file.sync_data()
}

/// The boot that the system is in.
pub(super) fn boot_id() -> io::Result<[u8; 36]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    text.trim_end().as_bytes().try_into().map_err(|_| io::Error::other("the system's boot id is not a UUID"))
}

/// What is in a file. Absent where it is empty, of another layout, or was written before the system was last started.
pub(super) fn read(file: &File) -> io::Result<Option<Left>> {
    let mut head = [0; size_of::<Head>()];
    match file.read_exact_at(&mut head, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let Ok(head) = Head::read_from_bytes(&head) else { return Ok(None) };
    if head.magic != MAGIC || head.boot_id != boot_id()? {
        return Ok(None);
    }
    let mut left = Left { incarnation: head.incarnation, spends: HashMap::new(), usage: Vec::new() };
    let mut segment = vec![0; SEGMENT_BYTES];
    for number in 0..SEGMENTS_MAX {
        let offset = u64::try_from(HEAD_BYTES + number * SEGMENT_BYTES).map_err(io::Error::other)?;
        match file.read_exact_at(&mut segment, offset) {
            // The process ended while it made the file longer; nothing was counted there.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            result => result?,
        }
        left.add(number, &segment)?;
    }
    Ok(Some(left))
}

impl Left {
    fn add(&mut self, number: usize, segment: &[u8]) -> io::Result<()> {
        let (kind, _) = u64::read_from_prefix(segment).map_err(|_| misaligned())?;
        match kind {
            KIND_SPENDS => {
                let first = u32::try_from(number * SEGMENT_WORDS).map_err(io::Error::other)?;
                let (words, _) = segment.as_chunks::<WORD_BYTES>();
                let words = (first..).zip(words.iter().map(|word| u64::from_ne_bytes(*word)));
                self.spends.extend(words.skip(SEGMENT_HEAD_WORDS).filter(|(_, units)| *units > 0));
            }
            KIND_USAGE => {
                let (counts, _) = segment.as_chunks::<{ size_of::<CountsLeft>() }>();
                self.usage.extend(counts.iter().skip(1).filter_map(CountsLeft::usage));
            }
            // It ended before the segment was taken into use.
            _ => {}
        }
        Ok(())
    }
}

impl CountsLeft {
    fn usage(bytes: &[u8; size_of::<Self>()]) -> Option<LeftUsage> {
        let Self { key, hour_and_verdict, flush, requests, credits, spare: _ } = Self::read_from_bytes(bytes).ok()?;
        let [.., verdict] = hour_and_verdict.to_be_bytes();
        let hour = hour_and_verdict.cast_signed() >> 8;
        let verdict = Verdict::from_number(verdict).filter(|_| requests > 0)?;
        Some(LeftUsage { flush, key: KeyId::from_bytes(key), hour, verdict, requests, credits })
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    fn opened(folder: &tempfile::TempDir) -> Opened {
        Opened::open(&folder.path().join("spent")).unwrap()
    }

    const KEY: KeyId = KeyId::from_bytes(*b"0123456789abcdef");

    #[test]
    fn what_is_counted_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert!(opened(&folder).left().unwrap().is_none(), "there is nothing yet");
        let journal = opened(&folder).begin([7; 16]).unwrap();
        let (a, b) = (journal.spend_cell().unwrap(), journal.spend_cell().unwrap());
        a.spend(3);
        a.spend(4);
        b.spend(1);
        let usage = journal.usage_cell(KEY, -5, Verdict::RateLimited).unwrap();
        usage.count(1, 0);
        usage.count(2, 9);
        let flushed = journal.usage_cell(KEY, 500_000, Verdict::Allowed).unwrap();
        flushed.count(5, 5);
        flushed.mark(3);
        let gone = journal.usage_cell(KEY, 1, Verdict::Allowed).unwrap();
        gone.count(1, 1);
        journal.free_usage_cells([gone]);
        assert!(Opened::open(&folder.path().join("spent")).is_err(), "it is in use");
        drop(journal);

        let left = opened(&folder).left().unwrap().unwrap();
        assert_eq!(left.incarnation, [7; 16]);
        assert_eq!(left.spends, HashMap::from([(a.number(), 7), (b.number(), 1)]));
        let expected =
            LeftUsage { flush: 0, key: KEY, hour: -5, verdict: Verdict::RateLimited, requests: 2, credits: 9 };
        let of_flush =
            LeftUsage { flush: 3, key: KEY, hour: 500_000, verdict: Verdict::Allowed, requests: 5, credits: 5 };
        assert_eq!(left.usage, [expected, of_flush]);
        drop(opened(&folder).begin([8; 16]).unwrap());
        let left = opened(&folder).left().unwrap().unwrap();
        assert_eq!((left.incarnation, left.spends.len(), left.usage.len()), ([8; 16], 0, 0));
    }

    #[test]
    fn it_grows_and_finds_everything_again() {
        let folder = tempfile::tempdir().unwrap();
        let journal = opened(&folder).begin([1; 16]).unwrap();
        let many = u32::try_from(SEGMENT_WORDS + 10).unwrap();
        let cells: Vec<SpendCell> = (0..many).map(|_| journal.spend_cell().unwrap()).collect();
        for cell in &cells {
            cell.spend(u64::from(cell.number()) + 1);
        }
        let used = SEGMENT_BYTES / size_of::<Counts>() + 10;
        for i in 0..used {
            let hour = i64::try_from(i).unwrap();
            journal.usage_cell(KEY, hour, Verdict::Allowed).unwrap().count(1, u64::MAX);
        }
        drop(journal);
        let left = opened(&folder).left().unwrap().unwrap();
        assert_eq!(left.spends.len(), cells.len());
        assert!(left.spends.iter().all(|(number, units)| *units == u64::from(*number) + 1));
        assert_eq!(left.usage.len(), used);
    }

    #[test]
    fn a_file_of_another_boot_or_layout_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spent");
        for damage in [15, 16] {
            drop(opened(&folder).begin([1; 16]).unwrap());
            assert!(opened(&folder).left().unwrap().is_some());
            File::options().write(true).open(&path).unwrap().write_all_at(b"#", damage).unwrap();
            assert!(opened(&folder).left().unwrap().is_none(), "at {damage}");
        }
    }

    #[test]
    fn a_counter_is_used_again_only_when_it_was_freed() {
        let folder = tempfile::tempdir().unwrap();
        let journal = opened(&folder).begin([1; 16]).unwrap();
        let (a, b) = (journal.spend_cell().unwrap(), journal.spend_cell().unwrap());
        assert_ne!(a.number(), b.number());
        a.spend(5);
        journal.retire_spend_cell(b);
        journal.free_spend_cell(b);
        journal.free_spend_cell(a);
        let again = journal.spend_cell().unwrap();
        assert_eq!((again.number(), again.value()), (a.number(), 5), "it never goes down");
        assert_ne!(journal.spend_cell().unwrap().number(), b.number(), "it is retired");
    }
}
