//! How long work is ended early.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// With a clone of this, another thread ends work that is not waited for any more: reading a policy, editing it,
/// compiling it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_set: AtomicBool,
    is_harmless: AtomicBool,
}

impl Interrupt {
    /// Ends the work soon.
    pub fn set(&self) {
        self.0.is_set.store(true, Ordering::SeqCst);
    }

    /// Whether it is to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::SeqCst)
    }

    /// Notes whether the work only reads for now, and looks here before it does anything else: then it need not be
    /// waited for.
    pub fn note_harmless(&self, is_harmless: bool) {
        self.0.is_harmless.store(is_harmless, Ordering::SeqCst);
    }

    /// Whether the work need not be waited for once [`set`](Self::set) was called.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        self.0.is_harmless.load(Ordering::SeqCst)
    }
}
