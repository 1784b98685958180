//! Other engines, over sockets: the i-PI protocol, in which a *server* moves atoms and a *driver* supplies forces.
//!
//! [`Driver`] makes any force provider a driver, for i-PI, ASE's `SocketIOCalculator`, LAMMPS-like servers and others. Numbers on
//! the wire are in atomic units (bohr, hartree) and cells have their vectors in columns; [`Forces`] is the only place that
//! converts. The peer is not trusted: lengths are checked before memory is reserved, and what is not understood is an error.
//!
//! [`Plumed`] puts the biases of PLUMED on any provider.
//!
//! [`Remote`] is the other side: a force provider whose forces come from the clients of a [`Server`].

mod client;
mod driver;
mod forces;
mod plumed;
mod remote;
mod server;
#[cfg(test)]
mod server_tests;
mod sys;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

pub use driver::{Driver, End, Report};
pub use forces::{Forces, Structure};
pub use plumed::{Plumed, PlumedSettings};
pub use remote::Remote;
pub use server::{Server, ServerError, ServerOptions};
pub use transport::Address;
pub use wire::WireError;

use scorefield_integrators::ForceProvider;
use scorefield_models::remote::RemoteSpec;

/// What opens the engines in a tree of providers, see [`scorefield_models::ProviderSpec::build_with`]. With `quiet`, clients come
/// and go without a word on stderr, unless something is wrong.
pub fn opener(quiet: bool) -> impl Fn(&RemoteSpec) -> scorefield_models::Result<Box<dyn ForceProvider>> {
    move |spec| Ok(Box::new(Remote::open(spec, quiet)?))
}
