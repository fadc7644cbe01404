//! Counters that every request touches. Threads would slow each other down on a shared one (the cache line travels), so
//! each counts in a shard of its own, and a scrape adds the shards up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Beyond this many threads, some share a shard; the sums stay right.
const SHARDS_MAX: usize = 32;

/// Counters per 128 bytes: as far apart as processors fetch cache lines in pairs.
const PAD: usize = 16;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of this thread, counted from 0 in the order of first use.
fn thread() -> usize {
    THREAD.get().unwrap_or_else(|| {
        let number = THREADS.fetch_add(1, Relaxed);
        THREAD.set(Some(number));
        number
    })
}

/// A row of counters, each cheap to add to from any thread (a few ns) and dearer to read.
#[derive(Debug)]
pub(super) struct Counters {
    cells: Box<[AtomicU64]>,
    /// Cells from one shard to the next.
    stride: usize,
    /// Shards, less one; their number is a power of two.
    mask: usize,
}

impl Counters {
    /// `len` counters at 0.
    pub(super) fn new(len: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let shards = (threads + 2).next_power_of_two().min(SHARDS_MAX);
        let stride = len.next_multiple_of(PAD) + PAD;
        let cells = std::iter::repeat_with(AtomicU64::default).take(stride * shards).collect();
        Self { cells, stride, mask: shards - 1 }
    }

    /// Adds to one counter; an index past the end adds to none.
    pub(super) fn add(&self, index: usize, n: u64) {
        let shard = (thread() & self.mask) * self.stride;
        if let Some(cell) = self.cells.get(shard + index) {
            cell.fetch_add(n, Relaxed);
        }
    }

    /// What was added to one counter so far.
    pub(super) fn sum(&self, index: usize) -> u64 {
        self.cells
            .chunks_exact(self.stride)
            .filter_map(|shard| shard.get(index))
            .fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_between_threads() {
        let counters = Counters::new(18);
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        counters.add(0, 1);
                        counters.add(17, 2);
                    }
                });
            }
        });
        assert_eq!([0, 1, 17].map(|i| counters.sum(i)), [40_000, 0, 80_000]);
    }
}
