//! Generative pseudo-force fields (GPFF, arXiv 2605.19050): what belongs to them besides the network.
//!
//! [`oracle`] is the best field there can be for a handful of known structures, in closed form: every sampler can be tried
//! with it without a network. [`shape`] knows how large and how elongated molecules of a given size are.

pub mod mixture;
pub mod oracle;
pub mod shape;

#[cfg(test)]
mod tests;
