//! The network against a plain one, finite differences and symmetries.

use super::config::{Head, Layout, MOST_BAND, PainnConfig};
use super::network::{Parameters, Seed, Work};
use super::tangent_kernels::PairTangents;
use scorefield_integrators::Noise;
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

fn small(head: Head) -> PainnConfig {
    PainnConfig { features: 20, layers: 2, radial: 40, cutoff: 8.0, head, time: head == Head::Direct, ..PainnConfig::default() }
}

fn parameters<T: SimdReal>(config: &PainnConfig, values: &[f64]) -> Parameters<T> {
    let layout = Arc::new(Layout::new(config));
    let mut p = Parameters::new(config, layout);
    p.load(&values.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>());
    p
}

/// Initial values with biases that are not zero.
fn values(config: &PainnConfig, seed: u64) -> Vec<f64> {
    let layout = Layout::new(config);
    let noise = Noise::new(seed);
    let mut values = layout.initialise(noise);
    for (k, &place) in layout.map.iter().enumerate() {
        values[place] += 0.1 * noise.normals(k as u32, 0, 0, scorefield_integrators::Purpose::TrainingProbe)[0];
    }
    values
}

type Molecule = (Vec<u32>, Vec<f64>, f64);

fn molecules() -> Vec<Molecule> {
    let place = |n: usize, seed: u64| -> Vec<f64> {
        (0..n)
            .flat_map(|i| Noise::new(seed).normals(i as u32, 0, 0, scorefield_integrators::Purpose::Displacement))
            .map(|x| 1.5 * x)
            .collect()
    };
    vec![(vec![6, 1, 8, 1], place(4, 1), -0.3), (vec![7], place(1, 2), 0.2), (vec![1, 1, 6, 7, 8, 6, 1], place(7, 3), 0.7)]
}

fn run<T: SimdReal>(p: &Parameters<T>, molecules: &[Molecule], back: bool) -> Work<T> {
    let mut work = Work::new(back, true);
    let atoms: usize = molecules.iter().map(|m| m.0.len()).sum();
    work.reserve(&p.config, atoms, atoms * atoms);
    for (types, x, time) in molecules {
        work.add(&p.config, types, x, *time);
    }
    work.forward(p);
    work
}

fn results<T: SimdReal>(p: &Parameters<T>, molecules: &[Molecule]) -> Vec<f64> {
    let work = run(p, molecules, false);
    match p.config.head {
        Head::Direct => (0..work.atoms()).flat_map(|i| work.vector(i)).map(|v| v.to_f64()).collect(),
        Head::Energy => (0..work.atoms()).map(|i| work.energy(i).to_f64()).collect(),
    }
}

/// PaiNN as the formulas say, one number at a time, with all radial functions; parameters by name.
fn plain(config: &PainnConfig, values: &[f64], (types, x, time): &Molecule) -> Vec<f64> {
    let layout = Layout::new(config);
    let mut start = 0;
    let mut tensors = std::collections::HashMap::new();
    for e in &layout.entries {
        let n: usize = e.shape.iter().product();
        tensors.insert(e.name.clone(), layout.map[start..start + n].iter().map(|&p| values[p]).collect::<Vec<f64>>());
        start += n;
    }
    let dense = |name: &str, x: &[f64]| -> Vec<f64> {
        let w = &tensors[&format!("{name}.weight")];
        let b = tensors.get(&format!("{name}.bias"));
        (0..w.len() / x.len()).map(|o| (0..x.len()).map(|i| w[o * x.len() + i] * x[i]).sum::<f64>() + b.map_or(0.0, |b| b[o])).collect()
    };
    let silu = |x: Vec<f64>| -> Vec<f64> { x.into_iter().map(|x| x / (1.0 + (-x).exp())).collect() };
    let (f, n) = (config.features, types.len());
    let mut q: Vec<Vec<f64>> =
        types.iter().map(|&z| tensors["representation.embedding.weight"][z as usize * f..(z as usize + 1) * f].to_vec()).collect();
    let mut mu = vec![vec![vec![0.0; f]; 3]; n];
    for l in 0..config.layers {
        let x_of: Vec<Vec<f64>> = q
            .iter()
            .map(|q| {
                let name = format!("representation.interactions.{l}.interatomic_context_net");
                dense(&format!("{name}.1"), &silu(dense(&format!("{name}.0"), q)))
            })
            .collect();
        let (old, mut new_q) = (mu.clone(), q.clone());
        for i in 0..n {
            for j in (0..n).filter(|&j| j != i) {
                let r = [0, 1, 2].map(|k| x[3 * j + k] - x[3 * i + k]);
                let d = (r.iter().map(|r| r * r).sum::<f64>() + config.distance_epsilon).sqrt();
                if d >= config.cutoff {
                    continue;
                }
                let fc = 0.5 * ((std::f64::consts::PI * d / config.cutoff).cos() + 1.0);
                let phi: Vec<f64> = (0..config.radial)
                    .map(|k| (-(d - k as f64 * config.spacing()).powi(2) / (2.0 * config.spacing().powi(2))).exp())
                    .collect();
                let w: Vec<f64> = dense("representation.filter_net", &phi)[3 * f * l..3 * f * (l + 1)].iter().map(|w| w * fc).collect();
                for a in 0..f {
                    new_q[i][a] += w[a] * x_of[j][a];
                    for k in 0..3 {
                        mu[i][k][a] += w[f + a] * x_of[j][f + a] * r[k] / d + w[2 * f + a] * x_of[j][2 * f + a] * old[j][k][a];
                    }
                }
            }
        }
        q = new_q;
        for i in 0..n {
            let name = format!("representation.mixing.{l}");
            let vw: Vec<Vec<f64>> = mu[i].iter().map(|m| dense(&format!("{name}.mu_channel_mix"), m)).collect();
            let norm = (0..f).map(|a| (vw.iter().map(|v| v[a] * v[a]).sum::<f64>() + config.norm_epsilon).sqrt());
            let cat: Vec<f64> = q[i].iter().copied().chain(norm).collect();
            let name = format!("{name}.intraatomic_context_net");
            let c = dense(&format!("{name}.1"), &silu(dense(&format!("{name}.0"), &cat)));
            for a in 0..f {
                q[i][a] += c[a] + c[2 * f + a] * vw.iter().map(|v| v[a] * v[f + a]).sum::<f64>();
                for k in 0..3 {
                    mu[i][k][a] += c[f + a] * vw[k][f + a];
                }
            }
        }
    }
    let blocks = config.head_layers;
    let mut out = Vec::new();
    for (mut q, mut mu) in q.into_iter().zip(mu) {
        for b in 0..blocks {
            let name = format!("output_modules.0.outnet.{b}");
            if config.head == Head::Energy {
                q = dense(&name, &q);
                q = if b + 1 < blocks { silu(q) } else { q };
                continue;
            }
            let vw: Vec<Vec<f64>> = mu.iter().map(|m| dense(&format!("{name}.mix_vectors"), m)).collect();
            let m = vw[0].len() / 2;
            let norm = (0..m).map(|a| (vw.iter().map(|v| v[a] * v[a]).sum::<f64>() + config.norm_epsilon).sqrt());
            let mut cat: Vec<f64> = q.iter().copied().chain(norm).collect();
            if b == 0 && config.time {
                cat.push(*time);
            }
            let o = dense(&format!("{name}.scalar_net.1"), &silu(dense(&format!("{name}.scalar_net.0"), &cat)));
            mu = vw.iter().map(|v| (0..m).map(|a| o[m + a] * v[m + a]).collect()).collect();
            q = if b + 1 < blocks { silu(o[..m].to_vec()) } else { o[..m].to_vec() };
        }
        match config.head {
            Head::Energy => out.push(q[0]),
            Head::Direct => out.extend(mu.iter().map(|m| m[0])),
        }
    }
    out
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let size = b.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

#[test]
fn agrees_with_the_plain_formulas() {
    for head in [Head::Direct, Head::Energy] {
        // More radial functions than a band has, fewer, and a cutoff within the molecule.
        for (radial, cutoff) in [(40, 8.0), (5, 3.0), (MOST_BAND + 1, 2.0)] {
            let config = PainnConfig { radial, cutoff, ..small(head) };
            let v = values(&config, 5);
            let want: Vec<f64> = molecules().iter().flat_map(|m| plain(&config, &v, m)).collect();
            let wide = results(&parameters::<f64>(&config, &v), &molecules());
            let narrow = results(&parameters::<f32>(&config, &v), &molecules());
            println!("{head:?} {radial}: {:.1e} {:.1e}", difference(&wide, &want), difference(&narrow, &want));
            assert!(difference(&wide, &want) < 1e-12 && difference(&narrow, &want) < 1e-5);
        }
    }
}

#[test]
fn a_molecule_has_the_same_bits_beside_others() {
    let config = small(Head::Direct);
    let p = parameters::<f32>(&config, &values(&config, 5));
    let together = results(&p, &molecules());
    let alone: Vec<f64> = molecules().iter().flat_map(|m| results(&p, std::slice::from_ref(m))).collect();
    assert_eq!(together, alone);
}

#[test]
fn turns_with_the_molecule() {
    let config = small(Head::Direct);
    let p = parameters::<f64>(&config, &values(&config, 6));
    let (types, x, time) = molecules().pop().unwrap();
    let want = results(&p, &[(types.clone(), x.clone(), time)]);
    let (s, c) = 0.7f64.sin_cos();
    // A rotation and a reflection.
    let turn = |v: &[f64]| -> Vec<f64> { v.chunks_exact(3).flat_map(|v| [c * v[0] - s * v[1], s * v[0] + c * v[1], -v[2]]).collect() };
    let moved: Vec<f64> = turn(&x).iter().enumerate().map(|(k, x)| x + [3.0, -2.0, 5.0][k % 3]).collect();
    assert!(difference(&results(&p, &[(types.clone(), moved, time)]), &turn(&want)) < 1e-12);
    let reversed = |v: &[f64]| -> Vec<f64> { v.chunks_exact(3).rev().flatten().copied().collect() };
    let backwards = results(&p, &[(types.iter().rev().copied().collect(), reversed(&x), time)]);
    assert!(difference(&backwards, &reversed(&want)) < 1e-12);
}

#[test]
fn atoms_in_one_place_are_finite() {
    let config = small(Head::Direct);
    let v = values(&config, 7);
    let p = parameters::<f32>(&config, &v);
    let molecule: Molecule = (vec![6, 6, 1], vec![0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], 0.0);
    let mut work = run(&p, &[molecule], true);
    assert!((0..3).all(|i| work.vector(i).iter().all(|f| f.is_finite())));
    let mut gradient = vec![0.0f32; p.layout.len];
    let mut positions = vec![0.0f32; 9];
    work.backward(&p, Seed::Vectors(&[1.0; 9]), Some(&mut gradient), Some(&mut positions));
    assert!(gradient.iter().chain(&positions).all(|g| g.is_finite()));
}

/// Derivative at 0 to fourth order.
fn derivative(at: impl Fn(f64) -> f64) -> f64 {
    const H: f64 = 2e-5;
    (8.0 * (at(H) - at(-H)) - (at(2.0 * H) - at(-2.0 * H))) / (12.0 * H)
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for head in [Head::Direct, Head::Energy] {
        let config = small(head);
        let v = values(&config, 8);
        let p = parameters::<f64>(&config, &v);
        let molecules = molecules();
        let atoms: usize = molecules.iter().map(|m| m.0.len()).sum();
        // A loss that is linear in the results.
        let seed: Vec<f64> = (0..3 * atoms).map(|k| ((k * 37 + 11) % 17) as f64 / 17.0 - 0.4).collect();
        let loss = |p: &Parameters<f64>, molecules: &[Molecule]| -> f64 {
            let r = results(p, molecules);
            if head == Head::Direct { r.iter().zip(&seed).map(|(r, s)| r * s).sum() } else { r.iter().sum() }
        };
        let mut work = run(&p, &molecules, true);
        let mut gradient = vec![0.0; p.layout.len];
        let mut positions = vec![0.0; 3 * atoms];
        let start = if head == Head::Direct { Seed::Vectors(&seed) } else { Seed::Energy };
        work.backward(&p, start, Some(&mut gradient), Some(&mut positions));
        let size = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        let mut seen = 0;
        for (k, &place) in p.layout.map.iter().enumerate() {
            if k % 61 != 0 && k + 40 < p.layout.map.len() {
                continue;
            }
            let at = |h: f64| {
                let mut moved = v.clone();
                moved[place] += h;
                loss(&parameters(&config, &moved), &molecules)
            };
            let want = derivative(at);
            assert!((gradient[place] - want).abs() < 1e-8 * size.max(1.0), "{head:?} parameter {k}: {} {want}", gradient[place]);
            seen += usize::from(want != 0.0);
        }
        assert!(seen > 100, "{seen}");
        // What is padding has no gradient: it stays zero.
        let mut real = vec![false; p.layout.len];
        p.layout.map.iter().for_each(|&m| real[m] = true);
        let padding = gradient.iter().zip(&real).filter(|(_, real)| !**real).all(|(g, _)| *g == 0.0);
        assert!(padding, "{head:?}");
        let mut k = 0;
        for m in 0..molecules.len() {
            for c in 0..molecules[m].1.len() {
                let at = |h: f64| {
                    let mut moved = molecules.clone();
                    moved[m].1[c] += h;
                    loss(&p, &moved)
                };
                let want = derivative(at);
                assert!((positions[k] - want).abs() < 1e-8 * want.abs().max(1.0), "{head:?} coordinate {k}: {} {want}", positions[k]);
                k += 1;
            }
        }
    }
}

/// A loss of energies and forces, and its gradient.
#[test]
fn gradients_of_forces_are_those_of_finite_differences() {
    let config = small(Head::Energy);
    let (v, molecules) = (values(&config, 9), molecules());
    let atoms: usize = molecules.iter().map(|m| m.0.len()).sum();
    let number = |k: usize| ((k * 37 + 11) % 17) as f64 / 17.0 - 0.4;
    let labels: Vec<f64> = (0..3 * atoms).map(number).collect();
    let evaluate = |p: &Parameters<f64>| {
        let mut work = Work::new(true, true);
        work.reserve(&p.config, 2 * atoms, atoms * atoms);
        molecules.iter().for_each(|(types, x, time)| work.add(&p.config, types, x, *time));
        work.forward(p);
        let mut slopes = vec![0.0; 3 * atoms];
        work.backward(p, Seed::Energy, None, Some(&mut slopes));
        let mut first = 0;
        let energies: Vec<f64> = molecules
            .iter()
            .map(|m| {
                first += m.0.len();
                (first - m.0.len()..first).map(|i| work.energy(i)).sum()
            })
            .collect();
        let forces: Vec<f64> = slopes.iter().map(|s| -s).collect();
        (work, energies, forces)
    };
    let loss = |p: &Parameters<f64>| {
        let (_, energies, forces) = evaluate(p);
        let of_energies: f64 = energies.iter().enumerate().map(|(m, e)| 0.7 * (e - number(m)).powi(2)).sum();
        of_energies + forces.iter().zip(&labels).map(|(f, l)| (f - l).powi(2)).sum::<f64>()
    };
    let p = parameters::<f64>(&config, &v);
    let (mut work, energies, forces) = evaluate(&p);
    let direction: Vec<f64> = forces.iter().zip(&labels).map(|(f, l)| -2.0 * (f - l)).collect();
    let slopes = energies.iter().enumerate().map(|(m, e)| (molecules[m].0.len(), 1.4 * (e - number(m))));
    let mut gradient = vec![0.0; p.layout.len];
    work.backward_tangent(&p, &mut PairTangents::default(), &direction, slopes, &mut gradient);
    let size = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
    let (mut seen, mut worst) = (0, 0.0f64);
    for (k, &place) in p.layout.map.iter().enumerate() {
        if k % 61 != 0 && k + 40 < p.layout.map.len() {
            continue;
        }
        let at = |h: f64| {
            let mut moved = v.clone();
            moved[place] += h;
            loss(&parameters(&config, &moved))
        };
        let want = derivative(at);
        worst = worst.max((gradient[place] - want).abs() / size);
        assert!((gradient[place] - want).abs() < 1e-8 * size, "parameter {k}: {} {want}", gradient[place]);
        seen += usize::from(want != 0.0);
    }
    println!("worst {worst:.1e} of {size:.1e}");
    assert!(seen > 100, "{seen}");
    assert!(p.layout.padding.iter().all(|&place| gradient[place] == 0.0));
    // The same in single precision.
    let narrow = parameters::<f32>(&config, &v);
    let mut work = Work::<f32>::new(true, true);
    work.reserve(&config, 2 * atoms, atoms * atoms);
    molecules.iter().for_each(|(types, x, time)| work.add(&config, types, x, *time));
    work.forward(&narrow);
    let direction: Vec<f32> = direction.iter().map(|&d| d as f32).collect();
    let slopes = energies.iter().enumerate().map(|(m, e)| (molecules[m].0.len(), (1.4 * (e - number(m))) as f32));
    let mut single = vec![0.0f32; p.layout.len];
    work.backward_tangent(&narrow, &mut PairTangents::default(), &direction, slopes, &mut single);
    let single: Vec<f64> = single.iter().map(|&g| f64::from(g)).collect();
    assert!(difference(&single, &gradient) < 2e-5, "{:e}", difference(&single, &gradient));
}
