//! How long work is ended early.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// With a clone of this, another thread ends work that is not waited for any more: reading a policy, editing it,
/// compiling it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    own: Arc<State>,
    /// That of the work which this is a part of.
    outer: Option<Arc<Self>>,
}

#[derive(Debug, Default)]
struct State {
    is_set: AtomicBool,
    is_harmless: AtomicBool,
}

impl Interrupt {
    /// Another one, for a part of the work: it is set when this one is, and can be set alone.
    #[must_use]
    pub fn for_a_part(&self) -> Self {
        Self { own: Arc::default(), outer: Some(Arc::new(self.clone())) }
    }

    /// Ends the work soon.
    pub fn set(&self) {
        self.own.is_set.store(true, Ordering::SeqCst);
    }

    /// Whether it is to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.own.is_set.load(Ordering::SeqCst)
            || self.outer.as_ref().is_some_and(|outer| outer.is_set())
    }

    /// Notes whether the work only reads for now, and looks here before it does anything else: then it need not be
    /// waited for.
    pub fn note_harmless(&self, is_harmless: bool) {
        self.own.is_harmless.store(is_harmless, Ordering::SeqCst);
        if let Some(outer) = &self.outer {
            outer.note_harmless(is_harmless);
        }
    }

    /// Whether the work need not be waited for once [`set`](Self::set) was called.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        self.own.is_harmless.load(Ordering::SeqCst)
    }
}
