//! How far the main job is from what arithmetic alone would take: operations of one step of alanine dipeptide in implicit
//! solvent (f32, BAOAB, lanes of replicas), counted exactly, this core's speed for each kind of operation, and the time of a
//! step, all measured in turns on one thread; the fastest of many repeats counts, because others use the machine too.
//!
//! ```text
//! cargo bench --bench limit
//! ```

use pulp::{Simd, WithSimd};
use scorefield_integrators::count::{self, Counted, Operations};
use scorefield_integrators::dynamics::draw_velocities;
use scorefield_integrators::simd::{Lanes, MAX_LANES, SimdReal, current_isa, dispatch, lanes};
use scorefield_integrators::{
    Batch, Context, DType, Dynamics, DynamicsSpec, Noise, Output, Propagator, Purpose, Quantity, State, System, UnitSystem, Want,
};
use scorefield_models::parse_spec;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const REPEATS: usize = 300;
/// Enough vectors that no operation waits for the one before.
const CHAINS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Fused,
    Add,
    Div,
    Sqrt,
    Estimate,
    Select,
}
const KINDS: [Kind; 6] = [Kind::Fused, Kind::Add, Kind::Div, Kind::Sqrt, Kind::Estimate, Kind::Select];

/// `rounds` times one operation on each of [`CHAINS`] vectors.
struct Speed(Kind, usize);

impl WithSimd for Speed {
    type Output = f32;
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) -> f32 {
        type V<S> = <f32 as SimdReal>::Of<S>;
        let one: V<S> = Lanes::splat(t, black_box(1.0));
        let mut x = [one; CHAINS];
        macro_rules! rounds {
            ($x:ident => $value:expr) => {
                for _ in 0..self.1 {
                    for $x in &mut x {
                        *$x = $value;
                    }
                }
            };
        }
        match self.0 {
            Kind::Fused => rounds!(x => x.mul_add(one, one)),
            Kind::Add => rounds!(x => *x + one),
            Kind::Div => rounds!(x => one / *x),
            Kind::Sqrt => rounds!(x => x.sqrt()),
            Kind::Estimate => rounds!(x => x.rsqrt_estimate().unwrap_or(one)),
            Kind::Select => rounds!(x => x.max(one)),
        }
        let mut out = [0f32; MAX_LANES];
        let mut sum = x[0];
        for x in &x[1..] {
            sum += *x;
        }
        sum.store(&mut out);
        out[0]
    }
}

fn main() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mechanics/aldp-obc");
    let built = parse_spec(&format!("mm:{path}.system.xml")).unwrap().build().unwrap();
    let (mut provider, mechanics) = (built.provider, built.mechanics.unwrap());
    let mut system = System::particles("peptide", mechanics.atoms(), 1.0);
    mechanics.apply_to(&mut system, path).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(format!("{path}.reference.json")).unwrap()).unwrap();
    let rows = reference[1]["positions_nm"].as_array().unwrap().iter();
    let x: Vec<f64> = rows.flat_map(|r| r.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect();

    // Operations of one step of one replica.
    let n = mechanics.atoms() as u64;
    let forces = mechanics.operations(&x);
    Noise::new(1).normal_lanes::<Counted>(pulp::Scalar128b, &[0; MAX_LANES], &[0; MAX_LANES], 1, Purpose::Thermostat);
    let noise = count::take().times(n);
    // Two kicks and two drifts, and the thermostat `a v + c ξ`.
    let moves = Operations { fused: 5, mul: 1, ..Operations::default() }.times(3 * n);
    let step = forces + noise + moves;
    println!("operations of one step of one replica of {n} atoms (besides the whole-number arithmetic of Philox)");
    for (name, o) in [("forces", forces), ("noise", noise), ("moves", moves), ("step", step)] {
        println!(
            "  {name:<7} {:>6} flop: {:>5} fused, {:>5} add, {:>5} mul, {:>4} div, {:>4} sqrt, {:>4} estimates; {:>5} others",
            o.flops(),
            o.fused,
            o.add,
            o.mul,
            o.div,
            o.sqrt,
            o.estimate,
            o.other
        );
    }

    let replicas = 64;
    let steps = 20;
    let batch = Batch::uniform(Arc::new(system), replicas, 0).unwrap();
    let mut state = State::at_rest(&batch, &x.repeat(replicas), DType::F32).unwrap();
    state.kt.fill(2.494);
    let noise = Noise::new(1);
    draw_velocities(&batch, &mut state, noise, false);
    let mut out = Output::new(&batch, DType::F32, Want::FORCES);
    let spec = DynamicsSpec::named("baoab", Quantity::new(1.0, "fs"), Quantity::new(1.0, "/ps")).unwrap();
    let mut dynamics = Dynamics::new(&spec, UnitSystem::Si, false).unwrap();
    let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut *provider, out: &mut out, noise };
    dynamics.prepare(&mut ctx).unwrap();

    let rounds = 4000;
    let mut best = [f64::INFINITY; KINDS.len()];
    let mut step_time = f64::INFINITY;
    for _ in 0..REPEATS {
        for (best, kind) in best.iter_mut().zip(KINDS) {
            let start = Instant::now();
            black_box(dispatch(Speed(kind, rounds)));
            *best = best.min(start.elapsed().as_secs_f64() / (rounds * CHAINS) as f64);
        }
        let start = Instant::now();
        dynamics.run(&mut ctx, steps).unwrap();
        step_time = step_time.min(start.elapsed().as_secs_f64() / (steps * replicas as u64) as f64);
    }

    let width = lanes::<f32>() as f64;
    println!("\n{} ({width} lanes of f32), one thread, fastest of {REPEATS} repeats in turns", current_isa());
    for (kind, time) in KINDS.iter().zip(best) {
        println!("  {:<9} {:>7.3} ns per vector", format!("{kind:?}"), 1e9 * time);
    }
    let [fused, add, div, sqrt, estimate, select] = best;
    let peak = 2.0 * width / fused;
    let reached = step.flops() as f64 / step_time;
    println!(
        "\nstep of one replica: {:.1} ns = {:.1} GFLOP/s, {:.1} % of the peak of fused multiply-adds, {:.1} GFLOP/s",
        1e9 * step_time,
        1e-9 * reached,
        100.0 * reached / peak,
        1e-9 * peak
    );
    println!("time of a step by operation, if each kind ran alone at its own speed:");
    let parts = [
        ("fused and mul", (step.fused + step.mul) as f64 * fused / width),
        ("add", step.add as f64 * add / width),
        ("div", step.div as f64 * div / width),
        ("sqrt", step.sqrt as f64 * sqrt / width),
        ("estimates", step.estimate as f64 * estimate / width),
        ("others", step.other as f64 * select / width),
    ];
    for (name, time) in parts {
        println!("  {name:<14} {:>6.1} ns  {:>5.1} %", 1e9 * time, 100.0 * time / step_time);
    }
    let sum: f64 = parts.iter().map(|p| p.1).sum();
    println!("  {:<14} {:>6.1} ns  {:>5.1} %", "sum", 1e9 * sum, 100.0 * sum / step_time);
}
