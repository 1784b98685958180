//! What a force field says about one system: masses and terms with their parameters, in internal units.

use super::terms::{MAX_PERIODICITY, Rescaling};
use scorefield_integrators::state::Cell;
use scorefield_integrators::{Constraint, Error, Result, System};

/// `½ k (r − length)²`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bond {
    pub atoms: [u32; 2],
    pub length: f64,
    pub k: f64,
}

/// `½ k (θ − angle)²`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Angle {
    pub atoms: [u32; 3],
    pub angle: f64,
    pub k: f64,
}

/// `k (1 + cos(n φ − phase))`, n from 1 to [`MAX_PERIODICITY`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Torsion {
    pub atoms: [u32; 4],
    pub periodicity: usize,
    pub phase: f64,
    pub k: f64,
}

/// `Σₙ Cₙ cosⁿ(φ − π)`, after Ryckaert and Bellemans.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RbTorsion {
    pub atoms: [u32; 4],
    pub c: [f64; 6],
}

/// Energies (kJ/mol) on a periodic grid of two torsions: `energy[i + size j]` at angles `2π i/size` and `2π j/size`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Map {
    pub size: usize,
    pub energy: Vec<f64>,
}

/// One pair of torsions, four atoms each, corrected by map number `map`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MapTorsion {
    pub map: usize,
    pub atoms: [[u32; 4]; 2],
}

/// Charge (e), σ (nm) and ε (kJ/mol) of one atom.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Particle {
    pub charge: f64,
    pub sigma: f64,
    pub epsilon: f64,
}

/// A pair with parameters of its own: charge product (e²), σ, ε.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exception {
    pub atoms: [u32; 2],
    pub charge_product: f64,
    pub sigma: f64,
    pub epsilon: f64,
}

/// Where pairs end. Exceptions are not cut.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cutoff {
    /// Distance beyond which pairs do not interact, nm.
    pub distance: f64,
    /// Pairs are nearest images in a periodic cell.
    pub periodic: bool,
    /// Distance from which Lennard-Jones is switched off, nm.
    pub switch: Option<f64>,
    /// Dielectric constant of the reaction field around the cutoff.
    pub dielectric: f64,
    /// Adds the mean of what the cutoff leaves out of Lennard-Jones.
    pub dispersion: bool,
}

/// Lennard-Jones and Coulomb between all pairs, Lorentz–Berthelot rules, with exceptions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Nonbonded {
    pub particles: Vec<Particle>,
    pub exceptions: Vec<Exception>,
    pub cutoff: Option<Cutoff>,
    /// Coulomb constant in kJ/mol nm/e².
    pub coulomb: f64,
}

impl Nonbonded {
    /// `[qq, c₆, c₁₂]` for `E = c₁₂ r⁻¹² − c₆ r⁻⁶ + qq r⁻¹`.
    fn parameters(&self, qq: f64, sigma: f64, epsilon: f64) -> [f64; 3] {
        let s6 = sigma.powi(6);
        [self.coulomb * qq, 4.0 * epsilon * s6, 4.0 * epsilon * s6 * s6]
    }

    /// `[qq, c₆, c₁₂]` of an exception.
    pub(super) fn exception_parameters(&self, e: &Exception) -> [f64; 3] {
        self.parameters(e.charge_product, e.sigma, e.epsilon)
    }

    /// `[qq, c₆, c₁₂]` of every ordered pair `[N, N]`.
    pub(super) fn pair_parameters(&self) -> Vec<[f64; 3]> {
        let n = self.particles.len();
        let mut table = vec![[0.0; 3]; n * n];
        for (i, a) in self.particles.iter().enumerate() {
            for (j, b) in self.particles.iter().enumerate() {
                table[i * n + j] = self.parameters(a.charge * b.charge, 0.5 * (a.sigma + b.sigma), (a.epsilon * b.epsilon).sqrt());
            }
        }
        for e in &self.exceptions {
            let [i, j] = e.atoms.map(|i| i as usize);
            table[i * n + j] = self.exception_parameters(e);
            table[j * n + i] = table[i * n + j];
        }
        table
    }
}

/// Charge (e), radius and scaled offset radius (nm) of one atom.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BornParticle {
    pub charge: f64,
    pub radius: f64,
    /// Scale times (radius − offset).
    pub scaled_radius: f64,
}

/// Generalised Born solvation after Onufriev, Bashford and Case, with the ACE surface term.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Born {
    pub particles: Vec<BornParticle>,
    pub solute_dielectric: f64,
    pub solvent_dielectric: f64,
    /// Surface energy in kJ/mol/nm², 4π included; 0 without surface term.
    pub surface: f64,
    /// Probe radius of the surface term, nm.
    pub probe: f64,
    /// Offset subtracted from radii, nm.
    pub offset: f64,
    pub coulomb: f64,
    pub rescaling: Rescaling,
}

/// A molecular-mechanics description of one system.
#[derive(Clone, Debug, PartialEq)]
pub struct Mechanics {
    pub(super) masses: Vec<f64>,
    pub(super) constraints: Vec<Constraint>,
    pub(super) bonds: Vec<Bond>,
    pub(super) angles: Vec<Angle>,
    pub(super) torsions: Vec<Torsion>,
    pub(super) rb_torsions: Vec<RbTorsion>,
    pub(super) maps: Vec<Map>,
    pub(super) map_torsions: Vec<MapTorsion>,
    pub(super) nonbonded: Option<Nonbonded>,
    pub(super) born: Option<Born>,
    pub(super) removes_drift: bool,
    /// The cell of the file: that of periodic systems whose structure has none.
    pub(super) cell: Option<Cell>,
    /// Names of the forces as read, in file order.
    pub(super) forces: Vec<String>,
}

impl Mechanics {
    /// Number of atoms.
    pub fn atoms(&self) -> usize {
        self.masses.len()
    }

    /// Masses `[N]` in u.
    pub fn masses(&self) -> &[f64] {
        &self.masses
    }

    /// The description asks for removal of centre-of-mass motion.
    pub fn removes_drift(&self) -> bool {
        self.removes_drift
    }

    /// Names of the forces as read, in file order.
    pub fn forces(&self) -> &[String] {
        &self.forces
    }

    /// One description per kind of term that occurs, named as OpenMM names its force; their energies add up.
    pub fn parts(&self) -> Vec<(&'static str, Mechanics)> {
        let empty = Mechanics {
            bonds: Vec::new(),
            angles: Vec::new(),
            torsions: Vec::new(),
            rb_torsions: Vec::new(),
            maps: Vec::new(),
            map_torsions: Vec::new(),
            nonbonded: None,
            born: None,
            removes_drift: false,
            cell: self.cell,
            masses: self.masses.clone(),
            constraints: Vec::new(),
            forces: Vec::new(),
        };
        let all = [
            ("HarmonicBondForce", Mechanics { bonds: self.bonds.clone(), ..empty.clone() }),
            ("HarmonicAngleForce", Mechanics { angles: self.angles.clone(), ..empty.clone() }),
            ("PeriodicTorsionForce", Mechanics { torsions: self.torsions.clone(), ..empty.clone() }),
            ("RBTorsionForce", Mechanics { rb_torsions: self.rb_torsions.clone(), ..empty.clone() }),
            ("CMAPTorsionForce", Mechanics { maps: self.maps.clone(), map_torsions: self.map_torsions.clone(), ..empty.clone() }),
            ("NonbondedForce", Mechanics { nonbonded: self.nonbonded.clone(), ..empty.clone() }),
            ("GBSAOBCForce", Mechanics { born: self.born.clone(), ..empty.clone() }),
        ];
        all.into_iter().filter(|(_, part)| *part != empty).collect()
    }

    /// Rigid bonds.
    pub fn constraints(&self) -> &[Constraint] {
        &self.constraints
    }

    /// Gives `system` this description's masses and rigid bonds, and where the system has no bonds those of the description.
    ///
    /// # Errors
    /// Where the atoms are not those the force field was made for: another number, or masses that do not fit the elements.
    pub fn apply_to(&self, system: &mut System, file: &str) -> Result<()> {
        if system.len() != self.atoms() {
            return Err(Error::Invalid(format!(
                "{} has {} atoms but {file} describes {}; give the structure that the force field was made for",
                system.name,
                system.len(),
                self.atoms()
            )));
        }
        for (i, (&mass, &expected)) in self.masses.iter().zip(&system.masses).enumerate() {
            // Repartitioned hydrogens are heavier and their neighbours lighter, so only gross differences are mistakes.
            let hydrogen = system.types[i] == 1;
            if system.types[i] > 0
                && mass > 0.0
                && (if hydrogen { mass > 4.6 } else { mass > expected + 0.6 || mass < expected - 9.0 || mass < 2.5 })
            {
                return Err(Error::Invalid(format!(
                    "{} of {} should weigh {expected:.3} u but {file} says {mass:.3} u; the files order their atoms differently",
                    system.describe_atom(i),
                    system.name
                )));
            }
        }
        system.masses.clone_from(&self.masses);
        system.constraints.clone_from(&self.constraints);
        if system.bonds.is_empty() {
            let pairs = self.bonds.iter().map(|b| b.atoms).chain(self.constraints.iter().map(|c| c.atoms));
            system.bonds = pairs.map(|[i, j]| (i.min(j), i.max(j))).collect();
            system.bonds.sort_unstable();
            system.bonds.dedup();
        }
        Ok(())
    }

    /// Checks indices and numbers of every term.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let n = self.atoms();
        fn atoms<const K: usize>(n: usize, what: &str, a: [u32; K]) -> std::result::Result<(), String> {
            for (k, &i) in a.iter().enumerate() {
                if i as usize >= n {
                    return Err(format!("{what} names particle {i}, but there are {n} (counted from 0)"));
                }
                if a[..k].contains(&i) {
                    return Err(format!("{what} names particle {i} twice"));
                }
            }
            Ok(())
        }
        fn number(what: &str, name: &str, x: f64) -> std::result::Result<(), String> {
            if x.is_finite() { Ok(()) } else { Err(format!("{what} has {name} = {x}; it must be finite")) }
        }
        if n == 0 {
            return Err("there are no particles".into());
        }
        for (i, b) in self.bonds.iter().enumerate() {
            let what = format!("HarmonicBondForce, bond {i}");
            atoms(n, &what, b.atoms)?;
            number(&what, "d", b.length)?;
            number(&what, "k", b.k)?;
        }
        for (i, c) in self.constraints.iter().enumerate() {
            let what = format!("constraint {i}");
            atoms(n, &what, c.atoms)?;
            if !(c.length.is_finite() && c.length > 0.0) {
                return Err(format!("{what} has d = {}; it must be positive", c.length));
            }
        }
        for (i, a) in self.angles.iter().enumerate() {
            let what = format!("HarmonicAngleForce, angle {i}");
            atoms(n, &what, a.atoms)?;
            number(&what, "a", a.angle)?;
            number(&what, "k", a.k)?;
        }
        for (i, t) in self.torsions.iter().enumerate() {
            let what = format!("PeriodicTorsionForce, torsion {i}");
            atoms(n, &what, t.atoms)?;
            number(&what, "phase", t.phase)?;
            number(&what, "k", t.k)?;
            if !(1..=MAX_PERIODICITY).contains(&t.periodicity) {
                return Err(format!("{what} has periodicity {}; 1 to {MAX_PERIODICITY} are supported", t.periodicity));
            }
        }
        for (i, t) in self.rb_torsions.iter().enumerate() {
            let what = format!("RBTorsionForce, torsion {i}");
            atoms(n, &what, t.atoms)?;
            t.c.iter().try_for_each(|&c| number(&what, "a coefficient", c))?;
        }
        for (i, t) in self.map_torsions.iter().enumerate() {
            let what = format!("CMAPTorsionForce, torsion {i}");
            t.atoms.iter().try_for_each(|&quartet| atoms(n, &what, quartet))?;
            if t.map >= self.maps.len() {
                return Err(format!("{what} names map {}, but there are {} (counted from 0)", t.map, self.maps.len()));
            }
        }
        if let Some(nb) = &self.nonbonded {
            if nb.particles.len() != n {
                return Err(format!("NonbondedForce has {} particles, the system {n}", nb.particles.len()));
            }
            for (i, p) in nb.particles.iter().enumerate() {
                let what = format!("NonbondedForce, particle {i}");
                number(&what, "q", p.charge)?;
                number(&what, "sig", p.sigma)?;
                number(&what, "eps", p.epsilon)?;
                if p.epsilon < 0.0 || p.sigma < 0.0 {
                    return Err(format!("{what} has sig = {} and eps = {}; neither may be negative", p.sigma, p.epsilon));
                }
            }
            for (i, e) in nb.exceptions.iter().enumerate() {
                let what = format!("NonbondedForce, exception {i}");
                atoms(n, &what, e.atoms)?;
                number(&what, "q", e.charge_product)?;
                number(&what, "sig", e.sigma)?;
                number(&what, "eps", e.epsilon)?;
            }
        }
        if let Some(gb) = &self.born {
            if gb.particles.len() != n {
                return Err(format!("the generalised Born force has {} particles, the system {n}", gb.particles.len()));
            }
            for (i, p) in gb.particles.iter().enumerate() {
                let what = format!("generalised Born force, particle {i}");
                number(&what, "charge", p.charge)?;
                number(&what, "radius", p.radius)?;
                number(&what, "scale", p.scaled_radius)?;
                if p.radius <= gb.offset || p.scaled_radius < 0.0 {
                    return Err(format!("{what} has radius {} nm; it must be above the offset of {} nm", p.radius, gb.offset));
                }
            }
            if !(gb.solute_dielectric > 0.0 && gb.solvent_dielectric > 0.0) {
                return Err("the generalised Born force has a dielectric constant that is not positive".into());
            }
        }
        Ok(())
    }
}
