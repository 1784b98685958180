//! A force of one's own: implement `ForceProvider`, and every propagator can use it.
//!
//!     cargo run --release --example 2_own_force

use scorefield_integrators::*;
use std::sync::Arc;

/// A spring of 100 kJ/mol/nm² from every atom to the origin.
struct Tether(Capabilities);

impl ForceProvider for Tether {
    fn capabilities(&self) -> &Capabilities {
        &self.0
    }
    fn prepare(&mut self, batch: &Batch, dtype: DType) -> Result<()> {
        self.0.check_batch(batch, false, dtype)
    }
    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        self.0.check_want(input.want)?;
        for b in 0..input.batch.replicas() {
            let mut energy = 0.0;
            for k in input.batch.range3(b) {
                let x = input.positions.get(k);
                out.forces.set(k, -100.0 * x);
                energy += 50.0 * x * x;
            }
            out.energy[b] = energy;
        }
        Ok(())
    }
    fn fork(&self) -> Result<Box<dyn ForceProvider>> {
        Ok(Box::new(Tether(self.0.clone())))
    }
}

fn main() -> Result<()> {
    let mut provider = Tether(Capabilities::potential("tether"));
    let batch = Batch::uniform(Arc::new(System::particles("argon", 8, 39.95)), 100, 0)?;
    let mut state = State::at_rest(&batch, &vec![0.1; 3 * batch.atoms()], DType::F64)?;
    state.kt.fill(units::BOLTZMANN * 300.0);
    let spec = DynamicsSpec::Baoab { dt: Quantity::new(10.0, "fs"), friction: Quantity::new(1.0, "/ps") };
    let mut dynamics = Dynamics::new(&spec, UnitSystem::Si, false)?;
    let mut out = Output::new(&batch, DType::F64, Want::ENERGY);
    let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut provider, out: &mut out, noise: Noise::new(1) };
    dynamics.prepare(&mut ctx)?;
    let mut mean = 0.0;
    for block in 0..200 {
        dynamics.run(&mut ctx, 100)?;
        ctx.evaluate(Want::ENERGY)?;
        mean += ctx.out.energy.iter().sum::<f64>() / 100.0 * if block >= 100 { 0.01 } else { 0.0 };
    }
    println!("mean energy {mean:.2} kJ/mol; equipartition gives 12 kT = {:.2}", 12.0 * units::BOLTZMANN * 300.0);
    Ok(())
}
