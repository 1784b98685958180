//! Relaxation through the public providers ends in the known minima of Lennard-Jones clusters.

use super::common::{displaced, toy};
use scorefield_integrators::relax::{Job, RelaxOptions, RelaxSpec, relax_all};
use scorefield_integrators::{Progress, Quantity};
use std::sync::Arc;

#[test]
fn lennard_jones_clusters_reach_their_global_minima() {
    // From as near as 0.005 σ L-BFGS loses its way on LJ55 in every second case, and ASE's does too: FIRE alone there.
    let cases = [(13, -44.326801, &RelaxSpec::NAMES[..]), (38, -173.928427, &RelaxSpec::NAMES), (55, -279.248470, &["fire"])];
    for (atoms, energy, methods) in cases {
        let (provider, toy) = toy(&format!("lj:n={atoms}"));
        let system = Arc::new(toy.system);
        for name in methods {
            let spec = RelaxSpec::named(name).unwrap().with_fmax(Quantity::bare(1e-6));
            // From 0.04 σ L-BFGS, whose first steps take the surface for softer than it is, may end in another basin.
            let starts = (0..8).map(|seed| Job::from((system.clone(), displaced(&toy.positions, [true; 3], 0.02, seed))));
            let (mut steps, mut count, mut worst) = (0, 0, 0.0f64);
            let done = |_: usize, result: scorefield_integrators::Result<_>| {
                let relaxed: scorefield_integrators::relax::Relaxed = result.unwrap();
                assert_eq!(relaxed.progress, Progress::Converged, "{name}, LJ{atoms}");
                assert!(relaxed.fmax < 1e-6 && relaxed.rmsd > 0.01);
                let error = relaxed.energy.unwrap() - energy;
                worst = worst.max(error.abs());
                assert!(error.abs() < 1e-6, "{name}, LJ{atoms}: {error:e} above the minimum");
                steps += relaxed.steps;
                count += 1;
            };
            let options = RelaxOptions { threads: Some(1), ..RelaxOptions::default() };
            let tally = relax_all(starts, &*provider, &spec, &options, done).unwrap();
            assert_eq!((tally.converged, count), (8, 8));
            eprintln!("{name}, LJ{atoms}: {:.0} steps on average, energy within {worst:.1e}", steps as f64 / 8.0);
        }
    }
}
