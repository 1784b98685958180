//! How large and how elongated molecules are: a mixture of Gaussians per number of atoms.
//!
//! A molecule's shape is `v = (ln √λ₁, ln √λ₂, ln √λ₃)` with its principal variances `λ` in Å², largest first: the logarithms
//! of the diagonal of the Cholesky factor of its covariance in the frame of its own axes (GPFF, arXiv 2605.19050, eq. 20,
//! whose other three numbers vanish there).

use super::mixture::{Component, Mixture};
use crate::error::{Error, Result};
use nalgebra::{Matrix3, Vector3};
use scorefield_integrators::Noise;
use scorefield_integrators::denoise::principal_variances;
use scorefield_integrators::units::NM_PER_ANGSTROM;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What files of this kind say they are.
const FORMAT: &str = "gpff-shape";
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 24;
/// Smallest principal variance in Å²: planar molecules have none.
const FLATTEST: f64 = 1e-3;
/// Components per number of atoms, and what is added to the diagonal of their covariances.
const COMPONENTS: usize = 5;
const RIDGE: f64 = 1e-6;
/// Sizes with fewer molecules are fitted together with their neighbours.
const POOL: usize = 50;
/// Candidates among which the one of the most similar relative variances gives its size.
const CANDIDATES: u32 = 64;
const SQUARE: f64 = NM_PER_ANGSTROM * NM_PER_ANGSTROM;

/// Relative principal variances (largest first, sum 1) to aim at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetShape {
    /// Long and thin.
    Rod,
    /// The same in all directions.
    Sphere,
    /// Flat and round.
    Disc,
}

impl TargetShape {
    /// All of them.
    pub const ALL: [TargetShape; 3] = [TargetShape::Rod, TargetShape::Sphere, TargetShape::Disc];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            TargetShape::Rod => "rod",
            TargetShape::Sphere => "sphere",
            TargetShape::Disc => "disc",
        }
    }

    /// Relative principal variances. No molecule is a line, so the rod is what one in a hundred of QM9 reaches.
    pub fn relative(self) -> [f64; 3] {
        match self {
            TargetShape::Rod => [0.9, 0.05, 0.05],
            TargetShape::Sphere => [1.0 / 3.0; 3],
            TargetShape::Disc => [0.5, 0.5, 0.0],
        }
    }
}

/// Normalised principal moments of inertia `(I₁/I₃, I₂/I₃)` of principal variances, largest first, all atoms alike (eq. 21).
/// A rod is at (0, 1), a sphere at (1, 1), a disc at (0.5, 0.5).
pub fn npr(variances: [f64; 3]) -> [f64; 2] {
    let [a, b, c] = variances;
    [(b + c) / (a + b), (a + c) / (a + b)]
}

/// The shape `v` of positions `[N, 3]` in nm.
pub fn shape_of(positions: &[f64]) -> [f64; 3] {
    principal_variances(positions).map(|v| 0.5 * (v / SQUARE).max(FLATTEST).ln())
}

/// Principal variances in nm² of a shape, largest first.
pub fn variances_of(shape: [f64; 3]) -> [f64; 3] {
    let mut variances = shape.map(|v| SQUARE * (2.0 * v).exp().max(FLATTEST));
    variances.sort_unstable_by(|a, b| b.total_cmp(a));
    variances
}

/// A fitted predictor of shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapePredictor {
    /// What it was fitted to, for people.
    pub source: String,
    sizes: BTreeMap<usize, Size>,
}

/// Molecules of one number of atoms.
#[derive(Clone, Debug, PartialEq)]
struct Size {
    /// Molecules of exactly this size.
    molecules: usize,
    /// Smallest and largest number of atoms that were fitted together.
    pooled: [usize; 2],
    mixture: Mixture,
}

impl ShapePredictor {
    /// Fits the shapes of molecules by number of atoms. Rare sizes borrow from their neighbours.
    ///
    /// # Errors
    /// Where there is no molecule of at least two atoms, or a shape is not finite.
    pub fn fit(shapes: &BTreeMap<usize, Vec<[f64; 3]>>, source: &str, seed: u64) -> Result<Self> {
        let fail = |reason: String| Err(Error::Spec { context: "shape predictor".into(), reason });
        let mut sizes = BTreeMap::new();
        for (&atoms, own) in shapes.iter().filter(|(n, own)| **n > 1 && !own.is_empty()) {
            let mut reach = 0;
            let pooled = loop {
                let (low, high) = (atoms.saturating_sub(reach), atoms + reach);
                let points: Vec<Vector3<f64>> = shapes.range(low.max(2)..=high).flat_map(|(_, s)| s).map(|s| Vector3::from(*s)).collect();
                if points.len() >= POOL || (reach > 0 && high - low > 64) {
                    break (low, high, points);
                }
                reach += 1;
            };
            if pooled.2.iter().any(|p| p.iter().any(|x| !x.is_finite())) {
                return fail(format!("a molecule of {atoms} atoms has no finite shape"));
            }
            let Some(mixture) = Mixture::fit(&pooled.2, COMPONENTS, RIDGE, Noise::new(seed), atoms as u32) else {
                return fail(format!("the shapes of {atoms} atoms cannot be fitted"));
            };
            sizes.insert(atoms, Size { molecules: own.len(), pooled: [pooled.0, pooled.1], mixture });
        }
        if sizes.is_empty() {
            return fail("there are no molecules of two and more atoms to fit".into());
        }
        Ok(ShapePredictor { source: source.into(), sizes })
    }

    /// Numbers of atoms that it knows, smallest and largest.
    pub fn range(&self) -> [usize; 2] {
        let key = |e: Option<(&usize, &Size)>| e.map_or(0, |(n, _)| *n);
        [key(self.sizes.first_key_value()), key(self.sizes.last_key_value())]
    }

    fn size(&self, atoms: usize) -> Result<&Size> {
        // A size in a gap of the data is like the nearest one.
        let below = self.sizes.range(..=atoms).next_back();
        let above = self.sizes.range(atoms..).next();
        let nearest = match (below, above) {
            (Some(b), Some(a)) => Some(if atoms - b.0 <= a.0 - atoms { b.1 } else { a.1 }),
            _ => None,
        };
        nearest.ok_or_else(|| Error::Spec {
            context: "shape predictor".into(),
            reason: format!("it was fitted to molecules of {} to {} atoms and knows nothing of {atoms}", self.range()[0], self.range()[1]),
        })
    }

    /// Principal variances (nm², largest first) of a molecule of `atoms` atoms, as the fitted molecules have them.
    ///
    /// # Errors
    /// Where it knows no molecule of that size.
    pub fn draw(&self, atoms: usize, noise: Noise, id: u32) -> Result<[f64; 3]> {
        Ok(variances_of(self.size(atoms)?.mixture.sample(noise, id, 0).into()))
    }

    /// The same with given relative variances: the total variance is that of the most similar of a few drawn shapes.
    ///
    /// # Errors
    /// Where it knows no molecule of that size.
    pub fn draw_like(&self, atoms: usize, target: TargetShape, noise: Noise, id: u32) -> Result<[f64; 3]> {
        let size = self.size(atoms)?;
        let relative = target.relative();
        let candidate = |draw: u32| {
            let variances = variances_of(size.mixture.sample(noise, id, draw).into());
            let total: f64 = variances.iter().sum();
            let distance: f64 = variances.iter().zip(relative).map(|(v, r)| (v / total - r).powi(2)).sum();
            (distance, total)
        };
        let best = (0..CANDIDATES).map(candidate).min_by(|a, b| a.0.total_cmp(&b.0));
        let total = best.map_or(0.0, |b| b.1);
        Ok(relative.map(|r| (r * total).max(SQUARE * FLATTEST)))
    }

    /// As the text of a JSON file; `command` is what made it.
    pub fn to_json(&self, command: &str) -> String {
        let rounded = |x: f64| (x * 1e6).round() / 1e6;
        let component = |c: &Component| ComponentFile {
            weight: c.weight,
            mean: [0, 1, 2].map(|k| rounded(c.mean[k])),
            covariance: [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)].map(|k| c.covariance[k]),
        };
        let sizes = self.sizes.iter().map(|(&atoms, s)| SizeFile {
            atoms,
            molecules: s.molecules,
            pooled: s.pooled,
            components: s.mixture.components().iter().map(component).collect(),
        });
        let file = File {
            format: FORMAT.into(),
            source: self.source.clone(),
            command: command.into(),
            length: "A".into(),
            sizes: sizes.collect(),
        };
        // Plain numbers and text; nothing in them can fail.
        let mut text = serde_json::to_string(&file).unwrap_or_default().replace("{\"atoms\"", "\n{\"atoms\"");
        text.push('\n');
        text
    }

    /// Reads a file that [`to_json`](Self::to_json) made.
    ///
    /// # Errors
    /// Where it cannot be read, is of another kind, or a number is out of range.
    pub fn read(file: &Path) -> Result<Self> {
        Self::parse(file, &crate::spec::read_text(file, MAX_BYTES)?)
    }

    /// The predictor that was fitted to QM9, which comes with the program.
    ///
    /// # Errors
    /// None, but that of a damaged program.
    pub fn qm9() -> Result<Self> {
        Self::parse(Path::new("data/models/qm9/shape.json"), include_str!("../../../data/models/qm9/shape.json"))
    }

    fn parse(file: &Path, text: &str) -> Result<Self> {
        let fail = |reason: String| Error::File { file: file.to_owned(), reason };
        let parsed: File = serde_json::from_str(text).map_err(|e| fail(format!("it is no shape predictor: {e}")))?;
        if parsed.format != FORMAT || parsed.length != "A" {
            return Err(fail(format!("its format is `{}` in `{}`, not `{FORMAT}` in `A`", parsed.format, parsed.length)));
        }
        let mut sizes = BTreeMap::new();
        for size in parsed.sizes {
            let components = size.components.iter().map(|c| {
                let [a, b, d, e, f, g] = c.covariance;
                Component::new(c.weight, Vector3::from(c.mean), Matrix3::new(a, b, e, b, d, f, e, f, g))
            });
            let mixture = components.collect::<Option<Vec<_>>>().and_then(Mixture::new);
            let bad = || fail(format!("the mixture for {} atoms is none: weights, means or covariances are out of range", size.atoms));
            sizes.insert(size.atoms, Size { molecules: size.molecules, pooled: size.pooled, mixture: mixture.ok_or_else(bad)? });
        }
        if sizes.is_empty() {
            return Err(fail("it has no sizes".into()));
        }
        Ok(ShapePredictor { source: parsed.source, sizes })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    source: String,
    command: String,
    length: String,
    sizes: Vec<SizeFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SizeFile {
    atoms: usize,
    molecules: usize,
    pooled: [usize; 2],
    components: Vec<ComponentFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentFile {
    weight: f64,
    mean: [f64; 3],
    /// Lower triangle, row by row.
    covariance: [f64; 6],
}
