//! Force providers: analytic potentials, molecular mechanics and learned models, and what joins them.
//!
//! Everything here implements [`ForceProvider`](scorefield_integrators::ForceProvider). [`spec`] builds a provider from
//! the command line or a TOML file, [`combine`] makes providers of providers, [`weights`] reads the files of trained
//! models, [`adapters`] turns any candle model into a provider, and [`testing`] holds the checks that all of them pass.

pub mod adapters;
pub mod analytic;
pub mod ani;
pub mod bias;
pub mod combine;
pub mod ditmc;
pub mod error;
pub mod external;
pub mod gpff;
mod launch;
pub mod local;
mod matrix;
pub mod mechanics;
pub mod molecule;
pub mod painn;
pub mod remote;
mod rows;
pub mod scoremd;
pub mod so3lr;
pub mod spec;
mod superpose;
pub mod testing;
pub mod train;
pub mod weights;

pub use analytic::{Toy, Trained};
pub use error::{Error, Result};
pub use spec::{Built, BuiltinInfo, ProviderSpec, builtins, parse_spec};
