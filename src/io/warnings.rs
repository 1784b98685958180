//! Warnings of file libraries, each kept once until someone shows them.

use std::collections::BTreeSet;
use std::sync::Mutex;

/// More different messages than anyone reads; the rest of a garbage file's are dropped.
const MOST: usize = 100;

static SEEN: Mutex<(BTreeSet<String>, Vec<String>)> = Mutex::new((BTreeSet::new(), Vec::new()));

#[cfg(test)]
thread_local! {
    /// Warnings that this thread gave, also those given before: other tests' warnings do not disturb.
    pub(crate) static GIVEN: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Keeps a warning, unless it was given before.
pub(crate) fn warn(message: &str) {
    #[cfg(test)]
    GIVEN.with_borrow_mut(|given| given.push(message.to_owned()));
    // A poisoned lock only means that another thread panicked in here; the sets stay valid.
    let mut seen = SEEN.lock().unwrap_or_else(|e| e.into_inner());
    if seen.0.len() < MOST && !seen.0.contains(message) {
        seen.0.insert(message.to_owned());
        seen.1.push(message.to_owned());
    }
}

/// Warnings about files since the last call, in order; each message comes once per process.
pub fn take_warnings() -> Vec<String> {
    let mut seen = SEEN.lock().unwrap_or_else(|e| e.into_inner());
    std::mem::take(&mut seen.1)
}
