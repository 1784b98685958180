//! For programs that call this one: a model opened from a few words, whole batches evaluated in internal units.
//!
//! The C interface (`bridges/c`) and the Python package (`bridges/python`) are thin layers over this module.

mod model;
mod sample;
mod spec;
#[cfg(test)]
mod tests;

pub use model::{Model, Results};
pub use sample::draw;
pub use spec::{Spec, Species};
