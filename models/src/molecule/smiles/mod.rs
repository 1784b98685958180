//! SMILES: reading (OpenSMILES, with RDKit's valences and aromaticity) and writing in canonical order.

mod kekule;
mod parse;
mod read;
mod valence;
mod write;
