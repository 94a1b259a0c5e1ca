//! Memory that a large policy has taken for a moment is given back: the agent is at rest nearly always.

/// Gives back what is free. The C library keeps it otherwise, in pieces between what is used.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: touches nothing that is allocated, and may be called at any time and by any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
