//! All tests of the program from outside, one module per topic: one binary links once.

mod bias;
mod cli;
mod conformers;
mod consistency;
mod device;
mod ensemble;
mod farm;
mod generation;
mod molecules;
mod mpi;
mod peers;
mod physics;
mod plumed;
mod potentials;
mod restart;
mod sharding;
mod support;
mod tools;
mod train;
mod trained;
mod wheel;
