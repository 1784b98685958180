//! LAMMPS on the C interface.
