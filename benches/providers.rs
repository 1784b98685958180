//! Forces of every provider at 1, 16, 128 and 1024 replicas, on one thread; periodic Lennard-Jones at 1000 and 10 000
//! atoms. The unit of throughput is one evaluation of one replica.
//!
//! ```text
//! cargo bench --bench providers -- peptide/f32
//! ```

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use scorefield_integrators::state::Cell;
use scorefield_integrators::{Batch, DType, ForceProvider, Input, Noise, Output, Purpose, State, System, Want};
use scorefield_models::parse_spec;
use std::sync::Arc;
use std::time::Duration;

struct Subject {
    name: String,
    provider: Box<dyn ForceProvider>,
    system: Arc<System>,
    positions: Vec<f64>,
    cell: Option<Cell>,
}

fn toy(name: &str, spec: &str) -> Subject {
    let built = parse_spec(spec).unwrap().build().unwrap();
    let toy = built.toy.unwrap();
    Subject { name: name.into(), provider: built.provider, system: Arc::new(toy.system), positions: toy.positions, cell: toy.cell }
}

/// The committed case `case` at a thermal structure.
fn molecule(name: &str, case: &str) -> Subject {
    let path = format!("{}/tests/data/mechanics/{case}", env!("CARGO_MANIFEST_DIR"));
    let built = parse_spec(&format!("mm:{path}.system.xml")).unwrap().build().unwrap();
    let mechanics = built.mechanics.unwrap();
    let mut system = System::particles(name, mechanics.atoms(), 1.0);
    mechanics.apply_to(&mut system, case).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(format!("{path}.reference.json")).unwrap()).unwrap();
    let rows = reference[1]["positions_nm"].as_array().unwrap().iter();
    let positions = rows.flat_map(|r| r.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect();
    Subject { name: name.into(), provider: built.provider, system: Arc::new(system), positions, cell: None }
}

impl Subject {
    /// An evaluation of `replicas` slightly different replicas.
    fn evaluation(&self, replicas: usize, dtype: DType) -> impl FnMut() {
        let batch = Batch::uniform(self.system.clone(), replicas, 0).unwrap();
        let n = self.system.len();
        let displaced = |b: usize| {
            (0..n).flat_map(move |i| {
                let z = Noise::new(b as u64).normals(i as u32, 0, 0, Purpose::Displacement);
                [0, 1, 2].map(|a| if self.system.axes[a] { self.positions[3 * i + a] + 1e-4 * z[a] } else { 0.0 })
            })
        };
        let positions: Vec<f64> = (0..replicas).flat_map(displaced).collect();
        let mut state = State::at_rest(&batch, &positions, dtype).unwrap();
        state.cells = self.cell.map(|c| vec![c; replicas]);
        let mut provider = self.provider.fork().unwrap();
        provider.prepare(&batch, dtype).unwrap();
        let mut out = Output::new(&batch, dtype, Want::ENERGY);
        move || {
            let input = Input {
                batch: &batch,
                positions: state.positions(),
                cells: state.cells.as_deref(),
                clock: state.clock,
                want: Want::FORCES,
            };
            provider.evaluate(&input, &mut out).unwrap();
        }
    }

    fn bench(&self, c: &mut Criterion, replicas: &[usize]) {
        let mut group = c.benchmark_group(&self.name);
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
        for dtype in [DType::F32, DType::F64] {
            for &replicas in replicas {
                let mut evaluate = self.evaluation(replicas, dtype);
                group.throughput(Throughput::Elements(replicas as u64));
                group.bench_function(BenchmarkId::new(dtype.to_string(), replicas), |b| b.iter(&mut evaluate));
            }
        }
        group.finish();
    }
}

fn bench(c: &mut Criterion) {
    let many = [1, 16, 128, 1024];
    for (name, spec) in [
        ("harmonic", "harmonic"),
        ("double-well", "double-well"),
        ("double-well-2d", "double-well-2d"),
        ("muller-brown", "muller-brown"),
        ("lj13", "lj:n=13"),
        ("lj38", "lj:n=38"),
    ] {
        toy(name, spec).bench(c, &many);
    }
    for (name, case) in [
        ("peptide-vacuum", "aldp-vacuum"),
        ("peptide-obc1", "aldp-amber14-obc1"),
        ("peptide-obc2", "aldp-obc"),
        ("tetrapeptide-obc2", "tetrapeptide-amber14-obc2"),
    ] {
        molecule(name, case).bench(c, &many);
    }
    for n in [1000, 10_000] {
        toy(&format!("lj-periodic-{n}"), &format!("lj:cutoff=2.5,n={n}")).bench(c, &[1]);
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
