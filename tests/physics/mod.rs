//! Physics with known answers: what every integrator, provider and ensemble must reproduce, whatever the code inside.
//!
//! Statistical tests have fixed seeds and compare with the exact answer within four standard errors, which come from the
//! spread over independent replicas and so need no guess of a correlation time.

mod bitwise;
mod common;
mod exchange;
mod fuzz;
mod kinetic;
mod landscapes;
mod metropolis;
mod minima;
mod moments;
mod newton;
mod order;
mod peptide;
mod reference;
