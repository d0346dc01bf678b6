//! An allocator that counts. A program that wants counts makes one its global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNTED: Cell<Allocations> = const { Cell::new(Allocations { count: 0, bytes: 0 }) };
    static HELD: Cell<Held> = const { Cell::new(Held { now: 0, peak: 0 }) };
}

/// What was asked of the allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Allocations {
    pub count: u64,
    pub bytes: u64,
}

/// Bytes that are allocated and not freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub now: i64,
    /// The most so far.
    pub peak: i64,
}

/// The system's allocator, with each thread's requests counted.
pub(crate) struct Counting;

fn count(size: usize) {
    // While a thread ends there is nothing left to count with.
    let _ = COUNTED.try_with(|counted| {
        let Allocations { count, bytes } = counted.get();
        counted.set(Allocations { count: count + 1, bytes: bytes + size as u64 });
    });
}

fn hold(change: i64) {
    let _ = HELD.try_with(|held| {
        let Held { now, peak } = held.get();
        held.set(Held { now: now + change, peak: peak.max(now + change) });
    });
}

// SAFETY: every request goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        hold(layout.size() as i64);
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(-(layout.size() as i64));
        // SAFETY: as above; the memory came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        hold(size as i64 - layout.size() as i64);
        // SAFETY: as above; the memory came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What this thread allocates while it runs this.
pub(crate) fn of<T>(run: impl FnOnce() -> T) -> (T, Allocations) {
    let before = COUNTED.get();
    let value = run();
    let after = COUNTED.get();
    (value, Allocations { count: after.count - before.count, bytes: after.bytes - before.bytes })
}

/// What this thread holds more after it has run this than before, and the most that it held more meanwhile.
pub(crate) fn held<T>(run: impl FnOnce() -> T) -> (T, Held) {
    let before = HELD.get().now;
    HELD.set(Held { now: before, peak: before });
    let value = run();
    let after = HELD.get();
    (value, Held { now: after.now - before, peak: after.peak - before })
}
