//! A thousand particles in a double well: Langevin dynamics in a few lines, and the answer from quadrature beside it.
//!
//!     cargo run --release --example 1_double_well

use scorefield_integrators::{Batch, Context, DType, Dynamics, DynamicsSpec, Noise, Output, Propagator, Quantity, State, UnitSystem, Want};
use scorefield_models::parse_spec;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let built = parse_spec("double-well:barrier=5")?.build()?;
    let (mut provider, Some(toy)) = (built.provider, built.toy) else { return Err("a toy brings its own system".into()) };
    let replicas = 1024;
    let batch = Batch::uniform(Arc::new(toy.system), replicas, 0)?;
    let mut state = State::at_rest(&batch, &toy.positions.repeat(replicas), DType::F32)?;
    state.kt.fill(1.0);

    // Reduced units: bare numbers, temperature is kT.
    let spec = DynamicsSpec::Baoab { dt: Quantity::bare(0.05), friction: Quantity::bare(1.0) };
    let mut dynamics = Dynamics::new(&spec, UnitSystem::Reduced, false)?;
    let mut out = Output::new(&batch, DType::F32, Want::ENERGY);
    let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut *provider, out: &mut out, noise: Noise::new(1) };
    dynamics.prepare(&mut ctx)?;

    let (mut second_moment, mut samples) = (0.0, 0);
    for block in 0..500 {
        dynamics.run(&mut ctx, 100)?;
        if block >= 50 {
            let x = ctx.state.positions();
            second_moment += (0..replicas).map(|b| x.get(3 * b).powi(2)).sum::<f64>();
            samples += replicas;
        }
    }
    println!("<x^2> = {:.4}, by quadrature 0.9368", second_moment / samples as f64);
    Ok(())
}
