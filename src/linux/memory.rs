//! The memory of this process: where the allocator takes it from, and what nothing uses any more.

/// Lets all threads allocate from one place, before the first of them starts. glibc gives each thread that finds the allocator
/// busy an arena of its own, and room that one thread has freed is lost to the others: with 10000 Services that is an eighth of
/// the whole process. One thread does nearly all the work here, so there is no contention to pay with.
pub fn one_arena() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call only sets a number of the allocator; no other thread has been started.
        let _known = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

/// Gives free memory back to the system. A full sync makes texts and lists for all Services at once, and the allocator would keep
/// their room for ever. Costs some milliseconds; with an allocator other than glibc's it does nothing.
pub fn release_unused() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call only returns pages that no allocation lies in; it locks the allocator itself.
        let _released = unsafe { libc::malloc_trim(0) };
    }
}
