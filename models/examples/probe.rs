use scorefield_integrators::*;
use scorefield_models::mechanics::Mechanics;
use std::sync::Arc;
fn main() {
    let file = std::env::args().nth(1).unwrap();
    let only: Option<usize> = std::env::args().nth(2).map(|s| s.parse().unwrap());
    let text = std::fs::read_to_string(&file).unwrap();
    let m = Mechanics::from_xml(&text, &file).unwrap();
    let r: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(file.replace("system.xml", "reference.json")).unwrap()).unwrap();
    let x: Vec<f64> = r[1]["positions_nm"].as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect();
    println!("isa {}", simd::current_isa());
    for dtype in [DType::F32, DType::F64] {
        for reps in [1usize, 16, 64, 128] {
            if only.is_some_and(|o| o != reps) { continue; }
            let mut provider = m.provider("test");
            let mut system = System::particles("test", m.atoms(), 1.0);
            system.masses = m.masses().to_vec();
            let batch = Batch::uniform(Arc::new(system), reps, 0).unwrap();
            let mut state = State::at_rest(&batch, &x.repeat(reps), dtype).unwrap();
            state.kt.fill(2.5);
            let noise = Noise::new(7);
            let mut out = Output::new(&batch, dtype, Want::FORCES);
            let spec = DynamicsSpec::named("baoab", Quantity::new(1.0, "fs"), Quantity::new(1.0, "/ps")).unwrap();
            let mut dynamics = Dynamics::new(&spec, UnitSystem::Si, false).unwrap();
            let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut provider, out: &mut out, noise };
            dynamics.prepare(&mut ctx).unwrap();
            let n = (400_000 / reps.max(4)) as u64;
            dynamics.run(&mut ctx, 100).unwrap();
            let mut best = 0f64;
            for _ in 0..5 {
                let t = std::time::Instant::now();
                dynamics.run(&mut ctx, n).unwrap();
                best = best.max(n as f64 * reps as f64 / t.elapsed().as_secs_f64());
            }
            println!("{dtype} replicas {reps:4}: {:.0} system-steps/s  {:.3} us", best, 1e6 / best);
        }
    }
}
