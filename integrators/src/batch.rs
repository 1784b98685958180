//! Replicas packed atom by atom; ragged in general, uniform where all replicas are one molecule.

use crate::error::{Result, invalid};
use crate::system::System;
use std::sync::Arc;

/// `B` replicas with `A` atoms in all. Rows `offsets[b]..offsets[b + 1]` of every `[A, …]` array are replica `b`.
#[derive(Clone, Debug)]
pub struct Batch {
    systems: Vec<Arc<System>>,
    offsets: Vec<usize>,
    ids: Vec<u32>,
    uniform: bool,
}

impl Batch {
    /// Packs `systems`, one per replica; `ids` are the global replica ids that key the noise.
    ///
    /// # Errors
    /// Where the lengths differ, there is no replica, or a system does not pass [`System::check`].
    pub fn new(systems: Vec<Arc<System>>, ids: Vec<u32>) -> Result<Self> {
        if systems.is_empty() {
            return invalid("a batch needs at least one replica");
        }
        if systems.len() != ids.len() {
            return invalid(format!("{} replicas but {} replica ids", systems.len(), ids.len()));
        }
        let mut offsets = Vec::with_capacity(systems.len() + 1);
        offsets.push(0);
        let mut total = 0;
        for (b, s) in systems.iter().enumerate() {
            if b == 0 || !Arc::ptr_eq(s, &systems[b - 1]) {
                s.check()?;
            }
            total += s.len();
            offsets.push(total);
        }
        let uniform = systems.iter().all(|s| Arc::ptr_eq(s, &systems[0]));
        Ok(Batch { systems, offsets, ids, uniform })
    }

    /// `replicas` copies of one system with ids `first_id..`.
    ///
    /// # Errors
    /// As [`Batch::new`].
    pub fn uniform(system: Arc<System>, replicas: usize, first_id: u32) -> Result<Self> {
        Batch::new(vec![system; replicas], (0..replicas as u32).map(|i| first_id + i).collect())
    }

    /// Number of replicas `B`.
    pub fn replicas(&self) -> usize {
        self.systems.len()
    }

    /// Number of atoms `A` of all replicas.
    pub fn atoms(&self) -> usize {
        self.offsets[self.replicas()]
    }

    /// Atoms of replica `b` as rows of `[A, …]`.
    pub fn range(&self, b: usize) -> std::ops::Range<usize> {
        self.offsets[b]..self.offsets[b + 1]
    }

    /// Elements of replica `b` in a flat `[A, 3]` array.
    pub fn range3(&self, b: usize) -> std::ops::Range<usize> {
        3 * self.offsets[b]..3 * self.offsets[b + 1]
    }

    /// Replica `b`'s system.
    pub fn system(&self, b: usize) -> &Arc<System> {
        &self.systems[b]
    }

    /// All systems, one per replica.
    pub fn systems(&self) -> &[Arc<System>] {
        &self.systems
    }

    /// Global id of replica `b`.
    pub fn id(&self, b: usize) -> u32 {
        self.ids[b]
    }

    /// Global ids of all replicas.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// `Some(N)` where all replicas share one system of `N` atoms, so that `[A, 3]` views as `[B, N, 3]`.
    pub fn uniform_atoms(&self) -> Option<usize> {
        self.uniform.then(|| self.systems[0].len())
    }

    /// The replicas `which` alone, in that order, keeping their global ids.
    ///
    /// # Errors
    /// Where `which` is empty or names a replica that does not exist.
    pub fn select(&self, which: &[usize]) -> Result<Batch> {
        if let Some(&b) = which.iter().find(|&&b| b >= self.replicas()) {
            return invalid(format!("replica {b} selected from a batch of {}", self.replicas()));
        }
        Batch::new(which.iter().map(|&b| self.systems[b].clone()).collect(), which.iter().map(|&b| self.ids[b]).collect())
    }
}
