//! Domains of a periodic box with their ghosts, put together again, beside the box as a whole.

use scorefield_c as sf;
use std::ffi::{CStr, CString};
use std::ptr;

/// A model opened through the C interface.
struct Opened(*mut sf::Model);

impl Opened {
    fn new(json: &str) -> Self {
        let text = CString::new(json).unwrap();
        // SAFETY: a string that ends with a zero byte.
        let model = unsafe { sf::scorefield_open(text.as_ptr()) };
        assert!(!model.is_null(), "{}", last_error());
        Opened(model)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: opened above, used nowhere else any more.
        unsafe { sf::scorefield_close(self.0) };
    }
}

fn last_error() -> String {
    // SAFETY: valid until the next failure of this thread.
    unsafe { CStr::from_ptr(sf::scorefield_last_error()) }.to_string_lossy().into_owned()
}

/// Forces `[N, 3]`, energy and virial.
type Sums = (Vec<f64>, f64, [f64; 9]);

/// Cuts a cubic box into `slabs` along x, gives each its ghosts, evaluates them and adds everything up.
fn by_domains(model: &Opened, x: &[f64], types: &[u32], side: f64, slabs: usize) -> Sums {
    // SAFETY: the model is open.
    let range = unsafe { sf::scorefield_local_range(model.0) };
    assert!(range > 0.0, "{}", last_error());
    let n = types.len();
    let (mut forces, mut energy, mut virial) = (vec![0.0; 3 * n], 0.0, [0.0; 9]);
    let images = (range / side).ceil() as i32;
    for slab in 0..slabs {
        let inside = |i: usize| (x[3 * i] / side * slabs as f64) as usize == slab;
        let mut owner: Vec<usize> = (0..n).filter(|&i| inside(i)).collect();
        let owned = owner.len();
        let mut at: Vec<[f64; 3]> = owner.iter().map(|&i| [x[3 * i], x[3 * i + 1], x[3 * i + 2]]).collect();
        let (low, high) = (slab as f64 * side / slabs as f64 - range, (slab + 1) as f64 * side / slabs as f64 + range);
        for i in 0..n {
            for image in 0..(2 * images + 1).pow(3) {
                let shift = [image, image / (2 * images + 1), image / (2 * images + 1).pow(2)].map(|k| k % (2 * images + 1) - images);
                let place: [f64; 3] = std::array::from_fn(|a| x[3 * i + a] + side * f64::from(shift[a]));
                let near = place[0] >= low && place[0] < high && place[1..].iter().all(|p| *p >= -range && *p < side + range);
                if near && !(shift == [0; 3] && inside(i)) {
                    owner.push(i);
                    at.push(place);
                }
            }
        }
        let lists: Vec<Vec<i32>> = (0..owned)
            .map(|i| {
                let near = |j: &usize| *j != i && (0..3).map(|a| (at[*j][a] - at[i][a]).powi(2)).sum::<f64>() < (1.1 * range).powi(2);
                // As LAMMPS does, with something in the highest bits.
                (0..at.len()).filter(near).map(|j| j as i32 | 1 << 30).collect()
            })
            .collect();
        let counts: Vec<i32> = lists.iter().map(|l| l.len() as i32).collect();
        let pointers: Vec<*const i32> = lists.iter().map(|l| l.as_ptr()).collect();
        let types: Vec<u32> = owner.iter().map(|&i| types[i]).collect();
        let mut on = vec![f64::NAN; 3 * at.len()];
        let mut atom_energy = vec![f64::NAN; owned];
        let domain = sf::Domain {
            size: size_of::<sf::Domain>(),
            owned: owned as i64,
            atoms: at.len() as i64,
            positions: at.as_flattened().as_ptr(),
            types: types.as_ptr(),
            neighbour_counts: counts.as_ptr(),
            neighbours: pointers.as_ptr(),
            neighbour_mask: 0x1FFF_FFFF,
            reserved: 0,
            forward: None,
            reverse: None,
            context: ptr::null_mut(),
        };
        let mut out = sf::DomainResults {
            size: size_of::<sf::DomainResults>(),
            forces: on.as_mut_ptr(),
            atom_energy: atom_energy.as_mut_ptr(),
            energy: 0.0,
            virial: [0.0; 9],
        };
        // SAFETY: all pointers have the lengths that the header asks for.
        let code = unsafe { sf::scorefield_evaluate_local(model.0, &domain, &mut out) };
        assert_eq!(code, 0, "{}", last_error());
        assert!((atom_energy.iter().sum::<f64>() - out.energy).abs() <= 1e-9 * out.energy.abs());
        energy += out.energy;
        virial.iter_mut().zip(out.virial).for_each(|(to, v)| *to += v);
        for (&i, f) in owner.iter().zip(on.as_chunks::<3>().0) {
            (0..3).for_each(|a| forces[3 * i + a] += f[a]);
        }
    }
    (forces, energy, virial)
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    let scale = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (k, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{k}: {a} is not {b} (largest {scale})");
    }
}

#[test]
fn lennard_jones_in_domains_is_the_periodic_box() {
    for shift in [false, true] {
        let model = Opened::new(&format!(r#"{{"model": "lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=8 A,shift={shift},n=108"}}"#));
        let side = (108.0 / (0.8442 / 0.3405f64.powi(3))).cbrt();
        let x: Vec<f64> = (0..108)
            .flat_map(|k| {
                let site = [k % 5, k / 5 % 5, k / 25];
                (0..3).map(move |a| (site[a] as f64 + 0.1 + 0.2 * ((k * 31 + a * 17) % 11) as f64 / 11.0) * side / 5.0)
            })
            .collect();
        let cell = [side, 0.0, 0.0, 0.0, side, 0.0, 0.0, 0.0, side];
        let (mut forces, mut energy, mut virial) = (vec![0.0; x.len()], [0.0], [0.0; 9]);
        let batch = sf::Batch { size: size_of::<sf::Batch>(), structures: 1, positions: x.as_ptr(), cells: cell.as_ptr() };
        let results = sf::BatchResults {
            size: size_of::<sf::BatchResults>(),
            forces: forces.as_mut_ptr(),
            energy: energy.as_mut_ptr(),
            virial: virial.as_mut_ptr(),
            atom_energy: ptr::null_mut(),
            energy_deviation: ptr::null_mut(),
            force_deviation: ptr::null_mut(),
        };
        // SAFETY: all pointers have the lengths that the header asks for.
        assert_eq!(unsafe { sf::scorefield_evaluate(model.0, &batch, &results) }, 0, "{}", last_error());
        for slabs in [1, 2, 3] {
            let (parts, sum, stress) = by_domains(&model, &x, &[18; 108], side, slabs);
            assert!((sum / energy[0] - 1.0).abs() < 1e-12, "{sum} {energy:?}");
            assert_close(&parts, &forces, 1e-12);
            assert_close(&stress, &virial, 1e-12);
        }
    }
}

/// Reference data, or `None` after saying why a test is skipped.
pub(crate) fn reference(file: &str) -> Option<std::path::PathBuf> {
    let root = std::env::var_os("SCOREFIELD_REFERENCE").map_or_else(|| super::here().join("../../../shared"), Into::into);
    let path = root.join(file);
    if !path.exists() {
        eprintln!("skipped: {} does not exist (set SCOREFIELD_REFERENCE)", path.display());
        return None;
    }
    Some(path.canonicalize().unwrap())
}

#[test]
fn ani_in_domains_is_the_molecules() {
    let Some(weights) = reference("weights/ani/ani2x_8x_hcnof.safetensors") else { return };
    // Two waters and a methane, in nm.
    let molecules = [
        (8, [0.0, 0.0, 0.0]),
        (1, [0.0757, 0.0586, 0.0]),
        (1, [-0.0757, 0.0586, 0.01]),
        (8, [0.03, -0.28, 0.02]),
        (1, [0.02, -0.185, 0.0]),
        (1, [0.1, -0.31, -0.04]),
        (6, [-0.35, 0.05, 0.03]),
        (1, [-0.29, 0.11, 0.1]),
        (1, [-0.41, -0.02, 0.09]),
        (1, [-0.29, -0.01, -0.04]),
        (1, [-0.41, 0.12, -0.03]),
    ];
    let types: Vec<u32> = molecules.iter().map(|m| m.0).collect();
    let x: Vec<f64> = molecules.iter().flat_map(|m| m.1).collect();
    let json = format!(r#"{{"model": "ani2x:weights={}", "types": {types:?}}}"#, weights.display());
    let model = Opened::new(&json);
    let (mut forces, mut energy, mut virial) = (vec![0.0; x.len()], [0.0], [0.0; 9]);
    let batch = sf::Batch { size: size_of::<sf::Batch>(), structures: 1, positions: x.as_ptr(), cells: ptr::null() };
    let results = sf::BatchResults {
        size: size_of::<sf::BatchResults>(),
        forces: forces.as_mut_ptr(),
        energy: energy.as_mut_ptr(),
        virial: virial.as_mut_ptr(),
        atom_energy: ptr::null_mut(),
        energy_deviation: ptr::null_mut(),
        force_deviation: ptr::null_mut(),
    };
    // SAFETY: all pointers have the lengths that the header asks for.
    assert_eq!(unsafe { sf::scorefield_evaluate(model.0, &batch, &results) }, 0, "{}", last_error());
    // Anywhere in a box that is large enough, also across its faces.
    let side = 3.0;
    for (slabs, shift) in [(1, [1.5; 3]), (2, [1.5; 3]), (3, [0.05, 2.9, 0.0]), (2, [0.1, 0.2, 2.95])] {
        let moved: Vec<f64> = x.iter().enumerate().map(|(k, x)| (x + shift[k % 3]).rem_euclid(side)).collect();
        let (parts, sum, stress) = by_domains(&model, &moved, &types, side, slabs);
        assert!((sum / energy[0] - 1.0).abs() < 1e-12, "{sum} {energy:?}");
        assert_close(&parts, &forces, 1e-9);
        assert_close(&stress, &virial, 1e-8);
    }
    let unknown = Opened::new(&json.replace("[8,", "[9,"));
    assert!(by_domains(&unknown, &x.iter().map(|x| x + 1.5).collect::<Vec<_>>(), &types, side, 1).1.is_finite());
}
