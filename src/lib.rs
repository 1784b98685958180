//! Not an engine of one model: `scorefield` runs molecular dynamics with any force provider, classical or learned, and is
//! the only package that reads files and talks to people.

pub mod analysis;
pub mod bridge;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod consistency;
pub mod dataset;
pub mod embed;
pub mod error;
pub mod generation;
pub mod io;
pub mod ranks;
pub mod report;
pub mod runtime;
pub mod signals;
pub mod simulation;
pub mod training;

pub use error::{Error, Result};
