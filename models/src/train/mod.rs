//! What training has in common, whatever the network: the optimiser, its schedule, averaged weights, clipping, counted
//! shuffles, and states that can be written down and gone on from bit by bit.

pub mod adamw;
pub mod clip;
pub(crate) mod device;
pub mod ema;
pub mod permutation;
pub mod schedule;
pub mod state;
pub mod step;

pub use adamw::{AdamW, Moments};
pub use clip::Clip;
pub use ema::Ema;
pub use permutation::Permutation;
pub use schedule::CosineSchedule;
pub use state::StateFile;
pub use step::{Move, Moved, sum_gradients};

/// Parameters are shared out over threads in pieces of this many; sums over pieces are made in their order.
pub const CHUNK: usize = 8192;
