//! One network per range of times.

use super::config::ModelConfig;
use super::network::{MODEL, Network, Rows, Worker};
use super::process::TimeRange;
use crate::error::{Error, Result};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

/// Networks from the largest times to the smallest, of which each answers for its own range. A model of one network is a mixture
/// of one.
#[derive(Clone)]
pub struct Mixture<T: SimdReal> {
    ranges: Vec<TimeRange>,
    networks: Vec<Arc<dyn Network<T>>>,
}

impl<T: SimdReal> Mixture<T> {
    /// The networks of a model; `systems` as for [`network`](super::network::network).
    ///
    /// # Errors
    /// Where a network is refused, none is given, they have different dimensions, or ranges do not follow one another.
    pub fn new(config: &ModelConfig, systems: &[Vec<[u32; 4]>]) -> Result<Self> {
        let refuse = |name: &str, value: String, remedy: &str| Err(Error::parameter(MODEL, name, value, remedy));
        let Some(first) = config.experts.first() else {
            return refuse("experts", "none".into(), "give at least one network");
        };
        for pair in config.experts.windows(2) {
            let (high, low) = (pair[0].range, pair[1].range);
            if high.start != low.end {
                let value = format!("{} to {} before {} to {}", high.start, high.end, low.start, low.end);
                return refuse("range", value, "give networks from the largest times to the smallest, with ranges that touch");
            }
            if pair[1].body.dimension() != first.body.dimension() {
                return refuse("dimension", pair[1].body.dimension().to_string(), "all networks of a mixture need the same");
            }
        }
        let networks = config.experts.iter().map(|e| super::network::network(e, systems)).collect::<Result<_>>()?;
        Ok(Mixture { ranges: config.experts.iter().map(|e| e.range).collect(), networks })
    }

    /// One network of one's own for all times.
    #[cfg(test)]
    pub(crate) fn of(network: Arc<dyn Network<T>>) -> Self {
        Mixture { ranges: vec![TimeRange::ALL], networks: vec![network] }
    }

    /// Its networks, from the largest times to the smallest.
    pub fn networks(&self) -> &[Arc<dyn Network<T>>] {
        &self.networks
    }

    /// Which network answers for time `t`: the one whose range holds it, at a border the one of larger times, and beyond all
    /// ranges the nearest.
    pub fn expert(&self, t: f64) -> usize {
        self.ranges.iter().position(|r| t >= r.start).unwrap_or(self.ranges.len() - 1)
    }

    /// A worker for one thread; it must [`load`](MixtureWorker::load) parameters first.
    pub fn worker(&self) -> MixtureWorker<T> {
        let workers = self.networks.iter().map(|n| n.worker()).collect();
        MixtureWorker { mixture: self.clone(), workers, experts: Vec::new(), gathered: Gathered::default() }
    }
}

/// Rows of one network, gathered.
#[derive(Default)]
struct Gathered<T> {
    rows: Vec<usize>,
    x: Vec<T>,
    t: Vec<T>,
    system: Vec<u32>,
    energy: Vec<T>,
    score: Vec<T>,
}

/// Evaluates a mixture in one thread.
pub struct MixtureWorker<T: SimdReal> {
    mixture: Mixture<T>,
    workers: Vec<Box<dyn Worker<T>>>,
    experts: Vec<usize>,
    gathered: Gathered<T>,
}

impl<T: SimdReal> MixtureWorker<T> {
    /// Takes over the parameters of network `expert`.
    pub fn load(&mut self, expert: usize, parameters: &[T]) {
        self.workers[expert].load(parameters);
    }

    /// Energies `[M]` and scores `[M, D]` as [`Worker::evaluate`], each row by the network of its time. A row's results do not
    /// depend on the rows beside it.
    ///
    /// # Errors
    /// Where energies are asked for at a time whose network has none.
    pub fn evaluate(&mut self, rows: Rows<'_, T>, mut energy: Option<&mut [T]>, mut score: Option<&mut [T]>) -> Result<()> {
        self.experts.clear();
        for &t in rows.t {
            let expert = self.mixture.expert(t.to_f64());
            if energy.is_some() && !self.mixture.networks[expert].has_energy() {
                let remedy = "the network of this time gives scores only; ask for scores";
                return Err(Error::parameter(MODEL, "energy at time", t.to_f64(), remedy));
            }
            self.experts.push(expert);
        }
        let Some(&first) = self.experts.first() else { return Ok(()) };
        if self.experts.iter().all(|&e| e == first) {
            self.workers[first].evaluate(rows, energy, score);
            return Ok(());
        }
        let d = self.mixture.networks[0].dimension();
        for (e, worker) in self.workers.iter_mut().enumerate() {
            let Gathered { rows: chosen, x, t, system, energy: e_out, score: s_out } = &mut self.gathered;
            chosen.clear();
            chosen.extend((0..rows.len()).filter(|&r| self.experts[r] == e));
            if chosen.is_empty() {
                continue;
            }
            x.clear();
            t.clear();
            system.clear();
            for &r in chosen.iter() {
                x.extend_from_slice(&rows.x[r * d..(r + 1) * d]);
                t.push(rows.t[r]);
                system.extend(rows.system.get(r));
            }
            e_out.resize(chosen.len(), T::default());
            s_out.resize(chosen.len() * d, T::default());
            worker.evaluate(
                Rows { x, t, system },
                energy.is_some().then_some(e_out.as_mut_slice()),
                score.is_some().then_some(s_out.as_mut_slice()),
            );
            for (k, &r) in chosen.iter().enumerate() {
                if let Some(energy) = energy.as_deref_mut() {
                    energy[r] = e_out[k];
                }
                if let Some(score) = score.as_deref_mut() {
                    score[r * d..(r + 1) * d].copy_from_slice(&s_out[k * d..(k + 1) * d]);
                }
            }
        }
        Ok(())
    }
}
