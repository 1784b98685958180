//! The numbers that define an ANI model besides its weights: elements, self energies, symmetry functions.

use std::collections::HashMap;

/// Largest radial cutoff that is believed, in Å.
const MAX_CUTOFF: f64 = 20.0;
/// Symmetry functions come in multiples of this number: the widest vector.
pub(crate) const WIDTH: usize = scorefield_integrators::simd::MAX_LANES;

/// Elements that ANI models name, with their atomic numbers.
const ELEMENTS: [(&str, u32); 12] =
    [("H", 1), ("C", 6), ("N", 7), ("O", 8), ("S", 16), ("F", 9), ("Cl", 17), ("B", 5), ("Si", 14), ("P", 15), ("Br", 35), ("I", 53)];

/// The published models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AniModel {
    /// ANI-2x: H, C, N, O, S, F, Cl; ωB97X/6-31G*.
    Ani2x,
    /// ANI-1x: H, C, N, O; ωB97X/6-31G*.
    Ani1x,
    /// ANI-1ccx: H, C, N, O; ANI-1x trained further towards CCSD(T)*/CBS.
    Ani1ccx,
}

impl AniModel {
    /// All of them.
    pub const ALL: [AniModel; 3] = [AniModel::Ani2x, AniModel::Ani1x, AniModel::Ani1ccx];

    /// The name in specifications and in the metadata of weights.
    pub fn name(self) -> &'static str {
        match self {
            AniModel::Ani2x => "ani2x",
            AniModel::Ani1x => "ani1x",
            AniModel::Ani1ccx => "ani1ccx",
        }
    }

    /// Directory in the published collection.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            AniModel::Ani2x => "ani-2x_8x",
            AniModel::Ani1x => "ani-1x_8x",
            AniModel::Ani1ccx => "ani-1ccx_8x",
        }
    }

    /// The model that metadata name, in either spelling.
    pub(crate) fn of_metadata(metadata: &HashMap<String, String>) -> Option<AniModel> {
        if let Some(name) = metadata.get("architecture") {
            return AniModel::ALL.into_iter().find(|m| m.name() == name);
        }
        let source = metadata.get("source")?;
        AniModel::ALL.into_iter().find(|m| source.contains(m.directory()))
    }

    /// Elements in the model's own order, with the energies that its training subtracted.
    fn self_energies(self) -> &'static [(&'static str, f64)] {
        match self {
            AniModel::Ani2x => &[
                ("H", -0.5978583943827134),
                ("C", -38.08933878049795),
                ("N", -54.711968298621066),
                ("O", -75.19106774742086),
                ("S", -398.1577125334925),
                ("F", -99.80348506781634),
                ("Cl", -460.1681939421027),
            ],
            AniModel::Ani1x => &[("H", -0.60095298), ("C", -38.08316124), ("N", -54.7077577), ("O", -75.19446356)],
            AniModel::Ani1ccx => {
                &[("H", -0.5991501324919538), ("C", -38.03750806057356), ("N", -54.67448347695333), ("O", -75.16043537275567)]
            }
        }
    }

    /// The published parameters with the elements for which `present` holds.
    pub(crate) fn parameters(self, present: impl Fn(&str) -> bool) -> Parameters {
        let steps = |from: f64, step: f64, n: usize| -> Vec<f64> { (0..n).map(|k| single(from + k as f64 * step)).collect() };
        let angles = |n: usize| -> Vec<f64> { steps(std::f64::consts::PI / (2 * n) as f64, std::f64::consts::PI / n as f64, n) };
        let symmetry = match self {
            AniModel::Ani2x => Symmetry {
                radial_cutoff: 5.1,
                angular_cutoff: 3.5,
                radial_eta: single(19.7),
                radial_shifts: steps(0.8, 0.26875, 16),
                zeta: single(14.1),
                angle_shifts: angles(4),
                angular_eta: 12.5,
                distance_shifts: steps(0.8, 0.3375, 8),
            },
            AniModel::Ani1x | AniModel::Ani1ccx => Symmetry {
                radial_cutoff: 5.2,
                angular_cutoff: 3.5,
                radial_eta: 16.0,
                radial_shifts: steps(0.9, 0.26875, 16),
                zeta: 32.0,
                angle_shifts: angles(8),
                angular_eta: 8.0,
                distance_shifts: steps(0.9, 0.65, 4),
            },
        };
        let elements = self.self_energies().iter().filter(|(symbol, _)| present(symbol));
        let elements = elements
            .filter_map(|&(symbol, self_energy)| Some(Element { symbol: symbol.into(), number: atomic_number(symbol)?, self_energy }));
        Parameters { elements: elements.collect(), symmetry }
    }
}

/// The published models compute with shifts and exponents rounded to single precision, also in double precision.
fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

/// Atomic number of a symbol.
pub(crate) fn atomic_number(symbol: &str) -> Option<u32> {
    ELEMENTS.iter().find(|e| e.0 == symbol).map(|e| e.1)
}

/// One element of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Element {
    pub(crate) symbol: String,
    pub(crate) number: u32,
    /// In hartree.
    pub(crate) self_energy: f64,
}

/// The symmetry functions (Å, 1/Å²).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Symmetry {
    pub(crate) radial_cutoff: f64,
    pub(crate) angular_cutoff: f64,
    pub(crate) radial_eta: f64,
    pub(crate) radial_shifts: Vec<f64>,
    pub(crate) zeta: f64,
    pub(crate) angle_shifts: Vec<f64>,
    pub(crate) angular_eta: f64,
    pub(crate) distance_shifts: Vec<f64>,
}

impl Symmetry {
    /// Radial functions per element.
    pub(crate) fn radial(&self) -> usize {
        self.radial_shifts.len()
    }

    /// Angular functions per pair of elements.
    pub(crate) fn angular(&self) -> usize {
        self.angle_shifts.len() * self.distance_shifts.len()
    }

    /// Features for `elements` elements.
    pub(crate) fn features(&self, elements: usize) -> usize {
        elements * self.radial() + elements * (elements + 1) / 2 * self.angular()
    }

    /// Columns, among those for `all` elements, of the features for the elements `some` (ascending).
    pub(crate) fn columns(&self, all: usize, some: &[usize]) -> Vec<usize> {
        let mut columns = Vec::with_capacity(self.features(some.len()));
        for &e in some {
            columns.extend(e * self.radial()..(e + 1) * self.radial());
        }
        for (n, &a) in some.iter().enumerate() {
            for &b in &some[n..] {
                // Pairs (0,0), (0,1), …, (1,1), …: row `a` of the upper triangle begins after those above it.
                let pair = a * (2 * all - a + 1) / 2 + (b - a);
                let start = all * self.radial() + pair * self.angular();
                columns.extend(start..start + self.angular());
            }
        }
        columns
    }
}

/// Elements and symmetry functions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) elements: Vec<Element>,
    pub(crate) symmetry: Symmetry,
}

impl Parameters {
    /// Whether metadata describe the symmetry functions.
    pub(crate) fn described(metadata: &HashMap<String, String>) -> bool {
        metadata.contains_key("Rcr")
    }

    /// Reads `elements`, `self_energies_Ha` and the published names of the symmetry functions' parameters.
    ///
    /// # Errors
    /// The key, what is wrong with it, and what to write.
    pub(crate) fn from_metadata(metadata: &HashMap<String, String>) -> Result<Parameters, String> {
        let text = |key: &str| metadata.get(key).map(String::as_str).ok_or_else(|| format!("metadata lack `{key}`"));
        let units = [("length_unit", "Angstrom"), ("energy_unit", "Hartree"), ("activation", "celu(0.1)")];
        for (key, known) in units {
            if let Some(other) = metadata.get(key).filter(|u| *u != known) {
                return Err(format!("metadata say {key} = {other}; only {known} is understood"));
            }
        }
        let list = |key: &str| -> Result<Vec<f64>, String> {
            text(key)?
                .split(',')
                .map(|x| match x.trim().parse::<f64>() {
                    Ok(v) if v.is_finite() => Ok(v),
                    _ => Err(format!("metadata: {key}: `{}` is not a finite number", x.trim())),
                })
                .collect()
        };
        let one = |key: &str| match list(key)?[..] {
            [x] if x > 0.0 => Ok(x),
            _ => Err(format!("metadata: {key} = {} is not one number above zero", text(key)?)),
        };
        let shifts = |key: &str| -> Result<Vec<f64>, String> { Ok(list(key)?.into_iter().map(single).collect()) };
        let symmetry = Symmetry {
            radial_cutoff: one("Rcr")?,
            angular_cutoff: one("Rca")?,
            radial_eta: single(one("EtaR")?),
            radial_shifts: shifts("ShfR")?,
            zeta: single(one("Zeta")?),
            angle_shifts: shifts("ShfZ")?,
            angular_eta: single(one("EtaA")?),
            distance_shifts: shifts("ShfA")?,
        };
        let (rcr, rca) = (symmetry.radial_cutoff, symmetry.angular_cutoff);
        if rcr > MAX_CUTOFF || rca > rcr {
            return Err(format!(
                "metadata: cutoffs Rcr = {rcr} and Rca = {rca} are refused; Rca is at most Rcr, and Rcr at most {MAX_CUTOFF}"
            ));
        }
        for (what, n) in [("ShfR", symmetry.radial()), ("ShfA × ShfZ", symmetry.angular())] {
            if n == 0 || !n.is_multiple_of(WIDTH) || n > 16 * WIDTH {
                return Err(format!(
                    "metadata: {n} functions from {what}; their number must be a multiple of {WIDTH}, at most {}",
                    16 * WIDTH
                ));
            }
        }
        let energies = list("self_energies_Ha")?;
        let symbols: Vec<&str> = text("elements")?.split(',').map(str::trim).collect();
        if symbols.len() != energies.len() {
            return Err(format!("metadata: {} elements but {} self energies; there must be as many", symbols.len(), energies.len()));
        }
        let mut elements: Vec<Element> = Vec::with_capacity(symbols.len());
        for (&symbol, &self_energy) in symbols.iter().zip(&energies) {
            let number = atomic_number(symbol).ok_or_else(|| format!("metadata: element `{symbol}` is not known"))?;
            if elements.iter().any(|e| e.number == number) {
                return Err(format!("metadata: element {symbol} is named twice"));
            }
            elements.push(Element { symbol: symbol.into(), number, self_energy });
        }
        Ok(Parameters { elements, symmetry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_some_elements_are_those_of_the_upper_triangle() {
        let symmetry = AniModel::Ani2x.parameters(|_| true).symmetry;
        assert_eq!(symmetry.features(7), 1008);
        let all: Vec<usize> = (0..7).collect();
        assert_eq!(symmetry.columns(7, &all), (0..1008).collect::<Vec<_>>());
        // H and N: pairs (H,H), (H,N), (N,N) are numbers 0, 2 and 13.
        let some = symmetry.columns(7, &[0, 2]);
        assert_eq!(some.len(), symmetry.features(2));
        assert_eq!([some[0], some[16], some[32], some[64], some[96]], [0, 32, 112, 112 + 2 * 32, 112 + 13 * 32]);
    }

    #[test]
    fn built_in_parameters_are_the_published_ones() {
        let p = AniModel::Ani2x.parameters(|_| true).symmetry;
        let published = ["0.39269908", "1.1780972", "1.9634954", "2.7488936"];
        assert!(p.angle_shifts.iter().zip(published).all(|(a, b)| (a - b.parse::<f64>().unwrap()).abs() <= 2e-7));
        let p = AniModel::Ani1ccx.parameters(|_| true).symmetry;
        assert_eq!((p.angular(), p.features(4), p.distance_shifts[3] as f32), (32, 384, 2.85));
        assert!((p.angle_shifts[7] - 2.9452431).abs() < 1e-7);
    }

    #[test]
    fn metadata_are_checked() {
        let good: HashMap<String, String> = [
            ("Rcr", "5.2"),
            ("Rca", "3.5"),
            ("EtaR", "16"),
            ("ShfR", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"),
            ("Zeta", "32"),
            ("ShfZ", "1,2,3,4"),
            ("EtaA", "8"),
            ("ShfA", "1,2,3,4"),
            ("elements", "H,C"),
            ("self_energies_Ha", "-0.5,-38"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        assert_eq!(Parameters::from_metadata(&good).unwrap().elements[1].number, 6);
        for (key, value, message) in [
            ("Rcr", "nan", "`nan` is not a finite number"),
            ("Rcr", "-1", "above zero"),
            ("Rca", "9", "cutoffs"),
            ("ShfR", "1,2", "multiple of 16"),
            ("ShfA", "1,2,3", "multiple of 16"),
            ("elements", "H", "1 elements but 2 self energies"),
            ("elements", "H,H", "named twice"),
            ("elements", "H,Xx", "`Xx` is not known"),
            ("energy_unit", "eV", "only Hartree is understood"),
        ] {
            let mut bad = good.clone();
            bad.insert(key.into(), value.into());
            let error = Parameters::from_metadata(&bad).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        let mut bad = good;
        bad.remove("EtaA");
        assert!(Parameters::from_metadata(&bad).unwrap_err().contains("lack `EtaA`"));
    }
}
