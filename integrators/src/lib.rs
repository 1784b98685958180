//! Not a simulation program: it reads no files and knows no model. This crate says what a force is
//! ([`ForceProvider`]) and moves atoms with it ([`Propagator`]), for many replicas at once.

pub mod array;
pub mod batch;
pub mod constraint;
pub mod count;
pub mod denoise;
pub mod device;
pub mod dynamics;
pub mod ensemble;
pub mod error;
pub mod exchange;
pub mod force;
pub mod fused;
pub mod lane;
pub mod metropolis;
pub mod noise;
pub mod propagator;
pub mod ranks;
pub mod relax;
pub mod simd;
pub mod state;
pub mod stream;
pub mod superpose;
pub mod system;
pub mod units;

pub use array::{Array, DType, Real, View};
pub use batch::Batch;
pub use device::{Device, DeviceModel, DeviceProvider, DeviceSpec, Fetch};
pub use dynamics::{Dynamics, DynamicsSpec};
pub use ensemble::{Ensemble, Guard, OnDivergence};
pub use error::{Error, Result};
pub use exchange::Exchange;
pub use force::{Capabilities, ForceProvider, Input, Kind, Output, Uncertainty, Want};
pub use metropolis::{IntegratorSpec, Metropolis, MetropolisSpec};
pub use noise::{Noise, Purpose};
pub use propagator::{Acceptance, Context, Progress, Propagator};
pub use state::{Cell, Clock, State};
pub use system::{AtomName, Constraint, System};
pub use units::{Dimension, Quantity, UnitSystem};
