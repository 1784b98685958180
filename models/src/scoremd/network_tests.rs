use super::config::{BeadFeatures, Body, EMBEDDING, ExpertConfig, HEAD_WIDTH, HEADS, Head, Layout, ModelConfig, RESIDUE_TABLES};
use super::mixture::Mixture;
use super::network::{Network, Rows, Worker, network};
use super::process::{TimeRange, VariancePreserving};
use safetensors::tensor::SafeTensors;
use scorefield_integrators::Real;
use scorefield_integrators::simd::SimdReal;
use std::path::PathBuf;
use std::sync::Arc;

/// Reproducible numbers of about unit variance.
fn random(seed: u64, n: usize) -> Vec<f64> {
    let noise = scorefield_integrators::Noise::new(seed);
    let draw = |i: usize| noise.normals(i as u32, 0, 0, scorefield_integrators::Purpose::Displacement)[0];
    (0..n).map(draw).collect()
}

fn typed<T: Real>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

fn wide<T: Real>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Largest difference over the largest entry of `want`.
fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(1e-300f64, |m, x| m.max(x.abs()));
    got.iter().zip(want).fold(0.0, |m: f64, (g, w)| if (g - w).is_nan() { f64::INFINITY } else { m.max((g - w).abs()) }) / size
}

/// Energies, where the network has them, and scores.
fn evaluate<T: SimdReal>(worker: &mut dyn Worker<T>, net: &dyn Network<T>, x: &[f64], t: &[f64], system: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let (x, t) = (typed::<T>(x), typed::<T>(t));
    let mut energy = vec![T::from_f64(f64::NAN); t.len()];
    let mut score = vec![T::from_f64(f64::NAN); x.len()];
    let energies = net.has_energy().then_some(energy.as_mut_slice());
    worker.evaluate(Rows { x: &x, t: &t, system }, energies, Some(&mut score));
    (wide(&energy), wide(&score))
}

fn loaded<T: SimdReal>(config: &ExpertConfig, systems: &[Vec<[u32; 4]>], parameters: &[f64]) -> (Arc<dyn Network<T>>, Box<dyn Worker<T>>) {
    let net = network::<T>(config, systems).unwrap();
    let mut worker = net.worker();
    worker.load(&typed::<T>(parameters));
    (net, worker)
}

// ---- Numbers of the published code --------------------------------------------------------------------------------------------

/// Folder of reference data, or `None` after saying why a test is skipped.
fn reference(file: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SCOREFIELD_REFERENCE")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let path = root.join("golden/scoremd").join(file);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} does not exist; set SCOREFIELD_REFERENCE", path.display());
    None
}

struct Golden(Vec<u8>);

impl Golden {
    fn open(name: &str) -> Option<Golden> {
        Some(Golden(std::fs::read(reference(&format!("{name}.safetensors"))?).unwrap()))
    }

    fn get(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        match tensor.dtype() {
            safetensors::Dtype::F32 => tensor.data().as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
            safetensors::Dtype::F64 => tensor.data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    fn parameters(&self, layout: &Layout) -> Vec<f64> {
        layout.entries().iter().flat_map(|e| self.get(&e.name)).collect()
    }
}

fn preset(name: &str, expert: usize, range: TimeRange) -> ExpertConfig {
    ExpertConfig { range, ..ModelConfig::preset(name).unwrap().experts[expert].clone() }
}

#[test]
fn networks_agree_with_the_published_ones() {
    let cases = [
        ("mlp_mueller_brown", preset("muller-brown", 0, TimeRange::ALL)),
        ("graph_transformer_aldp5", preset("alanine-dipeptide", 0, TimeRange { start: 0.0, end: 0.1 })),
        ("graph_transformer_score_head", preset("alanine-dipeptide-mixture", 1, TimeRange { start: 0.1, end: 0.6 })),
    ];
    fn check<T: SimdReal>(golden: &Golden, config: &ExpertConfig, tolerance: f64) {
        let kind = if T::DTYPE == scorefield_integrators::DType::F64 { "f64" } else { "f32" };
        let parameters = golden.parameters(&config.layout());
        let (net, mut worker) = loaded::<T>(config, &[], &parameters);
        let (x, t) = (golden.get("x"), golden.get("t"));
        let (energy, score) = evaluate(&mut *worker, &*net, &x, &t, &[]);
        let score_error = error(&score, &golden.get(&format!("score.{kind}")));
        let energy_error = if net.has_energy() { error(&energy, &golden.get(&format!("energy.{kind}"))) } else { 0.0 };
        let t_outside = golden.get("t_outside");
        let (_, score) = evaluate(&mut *worker, &*net, &x[..t_outside.len() * net.dimension()], &t_outside, &[]);
        let outside = error(&score, &golden.get(&format!("score_outside.{kind}")));
        println!("{kind}: energy {energy_error:.1e}, score {score_error:.1e}, outside {outside:.1e}");
        assert!(energy_error.max(score_error).max(outside) <= tolerance);
    }
    for (file, config) in cases {
        let Some(golden) = Golden::open(file) else { return };
        println!("{file}");
        check::<f64>(&golden, &config, 1e-9);
        check::<f32>(&golden, &config, 2e-5);
    }
}

#[test]
fn gradient_of_score_matching_agrees_with_the_published_one() {
    let (Some(golden), Some(weights)) = (Golden::open("dsm_grad_mlp"), Golden::open("mlp_mueller_brown")) else { return };
    let config = preset("muller-brown", 0, TimeRange::ALL);
    let layout = config.layout();
    let (net, mut worker) = loaded::<f64>(&config, &[], &weights.parameters(&layout));
    let (x, t, eps) = (golden.get("x_t.f64"), golden.get("t"), golden.get("eps"));
    let (_, score) = evaluate(&mut *worker, &*net, &x, &t, &[]);
    let process = VariancePreserving::default();
    let (m, d) = (t.len(), net.dimension());
    let mut u = vec![0.0; x.len()];
    let mut loss = 0.0;
    for (i, &t) in t.iter().enumerate() {
        let middle = 0.3;
        let weight = if t <= middle { 0.5 / middle } else { 0.5 / (1.0 - middle) };
        let sigma = process.sigma(t);
        for k in i * d..(i + 1) * d {
            let r = eps[k] + sigma * score[k];
            let scale = weight / (d * m) as f64;
            loss += scale * (r.abs() + 1e-7).powi(2);
            u[k] = scale * 2.0 * (r.abs() + 1e-7) * r.signum() * sigma;
        }
    }
    let want = golden.get("loss_dsm.f64")[0];
    println!("loss {loss}, published {want}");
    let mut gradient = vec![0.0; layout.len()];
    worker.accumulate(Rows { x: &x, t: &t, system: &[] }, None, Some(&u), &mut gradient);
    for e in layout.entries() {
        let want = golden.get(&format!("grad_dsm.{}.f64", e.name));
        let got = &gradient[e.offset..][..e.len()];
        println!("{}: {:.1e}", e.name, error(got, &want));
        if e.name != "layer3.bias" {
            assert!(error(got, &want) <= 1e-9, "{}", e.name);
        } else {
            assert!(got[0].abs() < 1e-12);
        }
    }
    assert!((loss / want - 1.0).abs() < 1e-9);
}

// ---- The published formulation, literally -------------------------------------------------------------------------------------

/// A number and its derivative along one direction.
#[derive(Clone, Copy, Debug, Default)]
struct Dual(f64, f64);

impl std::ops::Add for Dual {
    type Output = Dual;
    fn add(self, o: Dual) -> Dual {
        Dual(self.0 + o.0, self.1 + o.1)
    }
}
impl std::ops::Sub for Dual {
    type Output = Dual;
    fn sub(self, o: Dual) -> Dual {
        Dual(self.0 - o.0, self.1 - o.1)
    }
}
impl std::ops::Mul for Dual {
    type Output = Dual;
    fn mul(self, o: Dual) -> Dual {
        Dual(self.0 * o.0, self.1 * o.0 + self.0 * o.1)
    }
}
impl std::ops::Div for Dual {
    type Output = Dual;
    fn div(self, o: Dual) -> Dual {
        let q = self.0 / o.0;
        Dual(q, (self.1 - q * o.1) / o.0)
    }
}
impl Dual {
    fn exp(self) -> Dual {
        Dual(self.0.exp(), self.0.exp() * self.1)
    }
    fn tanh(self) -> Dual {
        let t = self.0.tanh();
        Dual(t, (1.0 - t * t) * self.1)
    }
    fn sqrt(self) -> Dual {
        let r = self.0.sqrt();
        Dual(r, self.1 / (2.0 * r))
    }
    fn sigmoid(self) -> Dual {
        Dual(1.0, 0.0) / (Dual(1.0, 0.0) + (Dual::default() - self).exp())
    }
}
fn constant(x: f64) -> Dual {
    Dual(x, 0.0)
}

/// Parameters by name.
struct Literal<'a> {
    config: &'a ExpertConfig,
    layout: Layout,
    parameters: &'a [f64],
    system: &'a [[u32; 4]],
}

impl Literal<'_> {
    fn tensor(&self, name: &str) -> &[f64] {
        let e = self.layout.find(name).unwrap();
        &self.parameters[e.offset..][..e.len()]
    }

    fn dense(&self, name: &str, x: &[Dual]) -> Vec<Dual> {
        let (w, b) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
        b.iter().zip(w.chunks(x.len())).map(|(&b, w)| w.iter().zip(x).fold(constant(b), |s, (&w, &x)| s + constant(w) * x)).collect()
    }

    fn norm(&self, name: &str, x: &[Dual]) -> Vec<Dual> {
        let n = constant(x.len() as f64);
        let mean = x.iter().fold(Dual::default(), |s, &x| s + x) / n;
        let variance = x.iter().fold(Dual::default(), |s, &x| s + (x - mean) * (x - mean)) / n;
        let (w, b) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
        let r = (variance + constant(1e-6)).sqrt();
        x.iter().zip(w).zip(b).map(|((&x, &w), &b)| (x - mean) / r * constant(w) + constant(b)).collect()
    }

    fn gate(&self, name: &str, new: &[Dual], old: &[Dual]) -> Vec<Dual> {
        let all: Vec<Dual> = new.iter().copied().chain(old.iter().copied()).chain(new.iter().zip(old).map(|(&n, &o)| n - o)).collect();
        let w = self.tensor(&format!("{name}.weight"));
        let s = w.iter().zip(&all).fold(Dual::default(), |s, (&w, &x)| s + constant(w) * x).sigmoid();
        new.iter().zip(old).map(|(&n, &o)| s * n + (constant(1.0) - s) * o).collect()
    }

    /// What the last layer gives.
    fn output(&self, x: &[Dual], t: f64) -> Vec<Dual> {
        let times = self.config.range.encode(t).map(constant);
        let times = &times[..self.config.range.features()];
        match &self.config.body {
            Body::Mlp { hidden, .. } => {
                let mut y: Vec<Dual> = x.iter().chain(times).copied().collect();
                for l in 0..hidden.len() {
                    y = self.dense(&format!("layer{l}"), &y).into_iter().map(|x| x * x.sigmoid()).collect();
                }
                self.dense(&format!("layer{}", hidden.len()), &y)
            }
            &Body::GraphTransformer { beads: n, layers, ref features, .. } => {
                let mut x = x.to_vec();
                for c in 0..3 {
                    let mean = (0..n).fold(Dual::default(), |s, i| s + x[3 * i + c]) / constant(n as f64);
                    (0..n).for_each(|i| x[3 * i + c] = x[3 * i + c] - mean);
                }
                let mut nodes: Vec<Vec<Dual>> = (0..n)
                    .map(|i| {
                        let mut f: Vec<Dual> = match features {
                            BeadFeatures::Index => (0..n).map(|k| constant(f64::from(u8::from(k == i)))).collect(),
                            BeadFeatures::Residue => (0..4)
                                .flat_map(|k| {
                                    let table = self.tensor(&format!("embedding.{}", RESIDUE_TABLES[k].0));
                                    table[self.system[i][k] as usize * EMBEDDING..][..EMBEDDING].iter().map(|&e| constant(e))
                                })
                                .collect(),
                        };
                        f.extend(times);
                        self.dense("node_embedding", &f)
                    })
                    .collect();
                let edges: Vec<Vec<Vec<Dual>>> = (0..n)
                    .map(|i| (0..n).map(|j| self.dense("edge_embedding", &[0, 1, 2].map(|c| x[3 * j + c] - x[3 * i + c]))).collect())
                    .collect();
                for l in 0..layers {
                    let name = |part: &str| format!("layer{l}.{part}");
                    let y: Vec<Vec<Dual>> = nodes.iter().map(|x| self.norm(&name("ln1"), x)).collect();
                    let [q, k, v] = ["q", "k", "v"].map(|p| y.iter().map(|y| self.dense(&name(p), y)).collect::<Vec<_>>());
                    let middle: Vec<Vec<Dual>> = (0..n)
                        .map(|i| {
                            let e: Vec<Vec<Dual>> = (0..n).map(|j| self.dense(&name("edge"), &edges[i][j])).collect();
                            let mut o = Vec::new();
                            for h in 0..HEADS {
                                let part = h * HEAD_WIDTH..(h + 1) * HEAD_WIDTH;
                                let w: Vec<Dual> = (0..n)
                                    .map(|j| {
                                        let dot = part.clone().fold(Dual::default(), |s, d| s + q[i][d] * (k[j][d] + e[j][d]));
                                        (dot / constant((HEAD_WIDTH as f64).sqrt())).exp()
                                    })
                                    .collect();
                                let sum = w.iter().fold(Dual::default(), |s, &w| s + w);
                                o.extend(part.map(|d| (0..n).fold(Dual::default(), |s, j| s + w[j] / sum * (v[j][d] + e[j][d]))));
                            }
                            self.gate(&name("gate1"), &self.dense(&name("out"), &o), &nodes[i])
                        })
                        .collect();
                    nodes = middle
                        .iter()
                        .map(|old| {
                            let f = self.dense(&name("ff1"), &self.norm(&name("ln2"), old));
                            let gelu = |x: Dual| {
                                let w = constant((2.0 / std::f64::consts::PI).sqrt()) * (x + constant(0.044715) * x * x * x);
                                constant(0.5) * x * (constant(1.0) + w.tanh())
                            };
                            let f: Vec<Dual> = f.into_iter().map(gelu).collect();
                            self.gate(&name("gate2"), &self.dense(&name("ff2"), &f), old)
                        })
                        .collect();
                }
                match self.config.head {
                    Head::Potential => {
                        vec![nodes.iter().fold(Dual::default(), |s, x| s + self.dense("decoder", x)[0])]
                    }
                    Head::Score => self.dense("decoder", &nodes.concat()),
                }
            }
        }
    }

    /// Energy, or NaN, and score.
    fn evaluate(&self, x: &[f64], t: f64) -> (f64, Vec<f64>) {
        let along = |k: usize| x.iter().enumerate().map(|(i, &x)| Dual(x, f64::from(u8::from(i == k)))).collect::<Vec<_>>();
        if self.config.head == Head::Score {
            return (f64::NAN, self.output(&along(usize::MAX), t).iter().map(|y| -y.0).collect());
        }
        let parts: Vec<Dual> = (0..x.len()).map(|k| self.output(&along(k), t)[0]).collect();
        (parts[0].0, parts.iter().map(|p| -p.1).collect())
    }
}

/// Small networks of every kind, their systems, and how many of these they have.
fn kinds() -> Vec<(ExpertConfig, Vec<Vec<[u32; 4]>>)> {
    let mut all = Vec::new();
    let systems = vec![vec![[3, 0, 1, 0], [19, 4, 2, 0], [3, 2, 0, 1]], vec![[0, 1, 1, 1], [5, 4, 2, 0], [11, 3, 2, 1]]];
    let low = TimeRange { start: 0.0, end: 0.1 };
    let high = TimeRange { start: 0.1, end: 0.6 };
    for head in [Head::Potential, Head::Score] {
        for range in [low, high] {
            all.push((ExpertConfig { body: Body::Mlp { dimension: 3, hidden: vec![9, 20] }, head, range }, vec![]));
            let body = |features| Body::GraphTransformer { beads: 3, width: 16, layers: 2, features };
            all.push((ExpertConfig { body: body(BeadFeatures::Index), head, range }, vec![]));
            all.push((ExpertConfig { body: body(BeadFeatures::Residue), head, range }, systems.clone()));
        }
    }
    all
}

/// Parameters of the size that a trained network has.
fn parameters(config: &ExpertConfig, seed: u64) -> Vec<f64> {
    let layout = config.layout();
    let mut all = random(seed, layout.len());
    for e in layout.entries() {
        let norm = e.name.contains(".ln") && e.name.ends_with("weight");
        let scale = if e.shape.len() == 2 && !e.name.starts_with("embedding") { (e.shape[1] as f64).powf(-0.5) } else { 0.4 };
        for p in &mut all[e.offset..e.offset + e.len()] {
            *p = *p * scale + f64::from(u8::from(norm));
        }
    }
    all
}

/// Coordinates, times within and beyond the range, and systems of `m` rows.
fn inputs(config: &ExpertConfig, systems: usize, m: usize, seed: u64) -> (Vec<f64>, Vec<f64>, Vec<u32>) {
    let d = config.body.dimension();
    let TimeRange { start, end } = config.range;
    let t = random(seed + 1, m).iter().map(|z| (start + end) / 2.0 + 0.4 * z * (end - start)).collect();
    let system = if systems == 0 { vec![] } else { (0..m).map(|r| (r % systems) as u32).collect() };
    (random(seed, m * d), t, system)
}

#[test]
fn networks_agree_with_the_literal_formulation() {
    fn check<T: SimdReal>(config: &ExpertConfig, systems: &[Vec<[u32; 4]>], tolerance: f64) {
        let parameters = wide(&typed::<T>(&parameters(config, 5)));
        let (x, t, system) = inputs(config, systems.len(), 6, 11);
        let (x, t) = (wide(&typed::<T>(&x)), wide(&typed::<T>(&t)));
        let (net, mut worker) = loaded::<T>(config, systems, &parameters);
        let (energy, score) = evaluate(&mut *worker, &*net, &x, &t, &system);
        let d = net.dimension();
        let (mut energies, mut scores) = (Vec::new(), Vec::new());
        for (r, &t) in t.iter().enumerate() {
            let system = system.get(r).map_or(&[][..], |&s| &systems[s as usize]);
            let (e, s) = Literal { config, layout: config.layout(), parameters: &parameters, system }.evaluate(&x[r * d..(r + 1) * d], t);
            energies.push(e);
            scores.extend(s);
        }
        let worst = error(&score, &scores).max(if net.has_energy() { error(&energy, &energies) } else { 0.0 });
        println!("{:?} {:?} {:?}: {worst:.1e}", T::DTYPE, config.head, config.body);
        assert!(worst <= tolerance);
    }
    for (config, systems) in kinds() {
        check::<f64>(&config, &systems, 1e-12);
        check::<f32>(&config, &systems, 1e-5);
    }
}

#[test]
fn gradients_are_derivatives_by_parameters() {
    for (config, systems) in kinds() {
        let layout = config.layout();
        let start = parameters(&config, 7);
        // More rows than a block of any kind holds.
        let m = 70;
        let (x, t, system) = inputs(&config, systems.len(), m, 3);
        let (net, mut worker) = loaded::<f64>(&config, &systems, &start);
        let rows = Rows { x: &x, t: &t, system: &system };
        let (a, u) = (random(21, m), random(22, x.len()));
        let a_given = net.has_energy().then_some(a.as_slice());
        // Adds to what is there.
        let mut gradient = vec![1.0; layout.len()];
        worker.accumulate(rows, a_given, Some(&u), &mut gradient);
        gradient.iter_mut().for_each(|g| *g -= 1.0);
        let mut parts = vec![0.0; layout.len()];
        if let Some(a) = a_given {
            worker.accumulate(rows, Some(a), None, &mut parts);
        }
        worker.accumulate(rows, None, Some(&u), &mut parts);
        assert!(error(&parts, &gradient) < 1e-12, "both at once are the sum of each");

        let mut value = |parameters: &[f64]| {
            worker.load(parameters);
            let (energy, score) = evaluate(&mut *worker, &*net, &x, &t, &system);
            let energies: f64 = if a_given.is_some() { energy.iter().zip(&a).map(|(e, a)| e * a).sum() } else { 0.0 };
            energies + score.iter().zip(&u).map(|(s, u)| s * u).sum::<f64>()
        };
        let mut found = Vec::new();
        for (k, e) in layout.entries().iter().enumerate() {
            let z = random(100 + k as u64, e.len());
            let size = z.iter().map(|z| z * z).sum::<f64>().sqrt();
            let mut at = |h: f64| {
                let mut moved = start.clone();
                moved[e.offset..].iter_mut().zip(&z).for_each(|(p, z)| *p += h * z / size);
                value(&moved)
            };
            // Six points: the error is far below that of rounding.
            let h = 3e-3;
            let [d1, d2, d3] = [1.0, 2.0, 3.0].map(|k| at(k * h) - at(-k * h));
            let want = (d1 * 0.75 - d2 * 0.15 + d3 / 60.0) / h;
            let got: f64 = gradient[e.offset..].iter().zip(&z).map(|(g, z)| g * z / size).sum();
            found.push((&e.name, got, want));
        }
        let largest = found.iter().fold(0.0f64, |m, f| m.max(f.2.abs()));
        let mut worst = 0.0f64;
        for (name, got, want) in found {
            // Some are zero: a bias of keys drops out of the softmax, one of energies out of scores.
            let difference = (got - want).abs() / want.abs().max(1e-3 * largest);
            worst = worst.max(difference);
            assert!(difference <= 1e-6, "{:?} {:?} {name}: {got} instead of {want}", config.head, config.body);
        }
        println!("{:?} {:?}: {worst:.1e}", config.head, config.body);
    }
}

#[test]
fn a_row_alone_has_the_bits_of_a_row_among_others() {
    fn check<T: SimdReal>(config: &ExpertConfig, systems: &[Vec<[u32; 4]>], alike: bool) {
        let m = 67;
        let (x, mut t, mut system) = inputs(config, systems.len(), m, 31);
        if alike {
            let one = t[0];
            t.fill(one);
            system.fill(1);
        }
        let (net, mut worker) = loaded::<T>(config, systems, &parameters(config, 9));
        let (energy, score) = evaluate(&mut *worker, &*net, &x, &t, &system);
        let d = net.dimension();
        for r in [0, 1, 25, 26, 63, 64, 66] {
            // Beside a row at another time, which is what makes a block of rows that are not alike.
            let pick = |v: &[f64], width: usize| [&v[r * width..(r + 1) * width], &v[..width]].concat();
            let system: Vec<u32> = if system.is_empty() { vec![] } else { vec![system[r], 0] };
            let (e, s) = evaluate(&mut *worker, &*net, &pick(&x, d), &[t[r], 0.5 * t[r] + 0.01], &system);
            assert_eq!(s[..d], score[r * d..(r + 1) * d]);
            assert!(e[0] == energy[r] || !net.has_energy());
            let (_, s) = evaluate(&mut *worker, &*net, &x[r * d..(r + 1) * d], &t[r..r + 1], system.get(..1).unwrap_or(&[]));
            assert_eq!(s, score[r * d..(r + 1) * d]);
        }
        // The energy alone, and the score alone.
        if net.has_energy() {
            let (x, t) = (typed::<T>(&x), typed::<T>(&t));
            let rows = Rows { x: &x, t: &t, system: &system };
            let (mut e, mut s) = (vec![T::default(); m], vec![T::default(); m * d]);
            worker.evaluate(rows, Some(&mut e), None);
            worker.evaluate(rows, None, Some(&mut s));
            assert_eq!((wide(&e), wide(&s)), (energy, score));
        }
    }
    for (config, systems) in kinds() {
        for alike in [false, true] {
            check::<f32>(&config, &systems, alike);
            check::<f64>(&config, &systems, alike);
        }
    }
}

#[test]
fn a_mixture_asks_the_network_of_each_time() {
    let config = ModelConfig::preset("muller-brown-mixture").unwrap();
    let mixture = Mixture::<f64>::new(&config, &[]).unwrap();
    for (t, expert) in [(1.0, 0), (0.61, 0), (0.6, 0), (0.59, 1), (0.1, 1), (0.0999, 2), (0.0, 2), (1.5, 0), (-0.1, 2)] {
        assert_eq!(mixture.expert(t), expert, "{t}");
    }
    let mut worker = mixture.worker();
    let all: Vec<Vec<f64>> = config.experts.iter().enumerate().map(|(k, e)| parameters(e, 40 + k as u64)).collect();
    for (k, p) in all.iter().enumerate() {
        worker.load(k, p);
    }
    let m = 30;
    let x = random(50, 2 * m);
    let t: Vec<f64> = (0..m).map(|r| ((r * 7) % m) as f64 / m as f64).collect();
    let (mut energy, mut score) = (vec![f64::NAN; m], vec![f64::NAN; 2 * m]);
    worker.evaluate(Rows { x: &x, t: &t, system: &[] }, Some(&mut energy), Some(&mut score)).unwrap();
    for r in 0..m {
        let k = mixture.expert(t[r]);
        let (net, mut one) = loaded::<f64>(&config.experts[k], &[], &all[k]);
        let (e, s) = evaluate(&mut *one, &*net, &x[2 * r..2 * r + 2], &t[r..r + 1], &[]);
        assert_eq!((e[0], s), (energy[r], score[2 * r..2 * r + 2].to_vec()));
    }

    // Energies only where there are some; scores at all times.
    let mut config = config;
    config.experts[0].head = Head::Score;
    let mut worker = Mixture::<f64>::new(&config, &[]).unwrap().worker();
    let rows = Rows { x: &x, t: &t, system: &[] };
    let refused = worker.evaluate(rows, Some(&mut energy), None).unwrap_err().to_string();
    assert!(refused.contains("energy at time") && refused.contains("scores only"), "{refused}");
    worker.evaluate(rows, None, Some(&mut score)).unwrap();
    config.experts.swap(0, 1);
    assert!(Mixture::<f64>::new(&config, &[]).is_err(), "ranges in the wrong order");
}

#[test]
fn shapes_that_mean_nothing_are_refused() {
    let graph = |beads, width, features| Body::GraphTransformer { beads, width, layers: 2, features };
    let one = |body| ExpertConfig { body, head: Head::Potential, range: TimeRange::ALL };
    let kinds = [0, 0, 0, 0];
    for (config, systems, word) in [
        (one(Body::Mlp { dimension: 0, hidden: vec![8] }), vec![], "dimension"),
        (one(Body::Mlp { dimension: 2, hidden: vec![] }), vec![], "hidden layers"),
        (one(Body::Mlp { dimension: 2, hidden: vec![8, 0] }), vec![], "hidden"),
        (one(graph(0, 96, BeadFeatures::Index)), vec![], "beads"),
        (one(graph(5, 97, BeadFeatures::Index)), vec![], "multiple of 16"),
        (one(graph(5, 96, BeadFeatures::Index)), vec![vec![kinds; 5]], "systems"),
        (one(graph(2, 96, BeadFeatures::Residue)), vec![], "kinds"),
        (one(graph(2, 96, BeadFeatures::Residue)), vec![vec![kinds; 3]], "3 beads"),
        (one(graph(2, 96, BeadFeatures::Residue)), vec![vec![kinds; 2], vec![kinds, [0, 5, 0, 0]]], "atom 5 in system 1"),
        (ExpertConfig { range: TimeRange { start: 0.5, end: 0.5 }, ..one(Body::Mlp { dimension: 2, hidden: vec![8] }) }, vec![], "range"),
    ] {
        let Err(e) = network::<f32>(&config, &systems) else { panic!("{config:?} was accepted") };
        assert!(e.to_string().contains(word), "{e}");
    }
}
