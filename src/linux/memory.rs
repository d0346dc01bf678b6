//! Memory of this process that nothing uses any more.

/// Gives free memory back to the system. A full sync makes texts and lists for all Services at once, and the allocator would keep
/// their room for ever. Costs some milliseconds; with an allocator other than glibc's it does nothing.
pub fn release_unused() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call only returns pages that no allocation lies in; it locks the allocator itself.
        let _released = unsafe { libc::malloc_trim(0) };
    }
}
