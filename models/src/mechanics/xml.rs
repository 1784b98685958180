//! Reader of OpenMM `System` files as written by `XmlSerializer`. What it does not know it refuses by name: a force left
//! out silently would be another system.

use super::model::{
    Angle, Bond, Born, BornParticle, Cutoff, Exception, Map, MapTorsion, Mechanics, Nonbonded, Particle, RbTorsion, Torsion,
};
use super::terms::Rescaling;
use roxmltree::{Document, Node};
use scorefield_integrators::Constraint;
use scorefield_integrators::units::COULOMB;

/// Largest file that is read; a system of 20,000 atoms without cutoff is far below.
const MAX_BYTES: usize = 256 << 20;

/// Radius offset of OBC models, nm.
const OFFSET: f64 = 0.009;
/// Probe radius of the surface term, nm.
const PROBE: f64 = 0.14;
const OBC1: Rescaling = Rescaling { alpha: 0.8, beta: 0.0, gamma: 2.909125 };
const OBC2: Rescaling = Rescaling { alpha: 1.0, beta: 0.8, gamma: 4.85 };

/// A message with the line it belongs to.
type Result<T> = std::result::Result<T, String>;

/// Reads a system from XML text.
pub(super) fn read(text: &str) -> Result<Mechanics> {
    if text.len() > MAX_BYTES {
        return Err(format!("the file has {} bytes; at most {MAX_BYTES} are read", text.len()));
    }
    let document = Document::parse(text).map_err(|e| {
        // Where a file merely ends too early, the parser gives no position.
        let position = e.pos();
        let ends_early =
            matches!(e, roxmltree::Error::UnclosedRootNode | roxmltree::Error::NoRootNode | roxmltree::Error::UnexpectedEndOfStream);
        let row = if ends_early { text.lines().count().max(1) as u32 } else { position.row };
        format!("line {row}: not well-formed XML: {e}{}", if ends_early { "; the file is incomplete" } else { "" })
    })?;
    let root = document.root_element();
    if root.tag_name().name() != "System" {
        return at(
            root,
            format!(
                "the root element is <{}>, not <System>; write the file with openmm.XmlSerializer.serialize(system)",
                root.tag_name().name()
            ),
        );
    }
    let mut m = Mechanics {
        masses: Vec::new(),
        constraints: Vec::new(),
        bonds: Vec::new(),
        angles: Vec::new(),
        torsions: Vec::new(),
        rb_torsions: Vec::new(),
        maps: Vec::new(),
        map_torsions: Vec::new(),
        nonbonded: None,
        born: None,
        removes_drift: false,
        cell: None,
        forces: Vec::new(),
    };
    for section in elements(root) {
        match section.tag_name().name() {
            "PeriodicBoxVectors" => {
                let mut cell = [0.0; 9];
                for (row, v) in cell.chunks_exact_mut(3).zip(elements(section)) {
                    for (x, axis) in row.iter_mut().zip(["x", "y", "z"]) {
                        *x = number(v, axis)?;
                    }
                }
                m.cell = Some(cell);
            }
            "Particles" => {
                for p in elements(section) {
                    if let Some(site) = elements(p).next() {
                        return at(
                            site,
                            format!(
                                "particle {} is a virtual site ({}); virtual sites are not supported",
                                m.masses.len(),
                                site.tag_name().name()
                            ),
                        );
                    }
                    m.masses.push(number(p, "mass")?);
                }
            }
            "Constraints" => {
                for c in elements(section) {
                    m.constraints.push(Constraint { atoms: [index(c, "p1")?, index(c, "p2")?], length: number(c, "d")? });
                }
            }
            "Forces" => {
                for force in elements(section) {
                    read_force(force, &mut m)?;
                }
            }
            other => return at(section, format!("<{other}> is not known here")),
        }
    }
    for (i, &mass) in m.masses.iter().enumerate() {
        if !(mass.is_finite() && mass >= 0.0) {
            return Err(format!("particle {i} has mass {mass}"));
        }
    }
    m.check()?;
    if m.born.is_some() && m.nonbonded.as_ref().and_then(|nb| nb.cutoff.as_ref()).is_some_and(|c| c.periodic) {
        return at(root, "generalised Born solvation together with a NonbondedForce in a periodic cell is not supported".into());
    }
    Ok(m)
}

fn read_force(force: Node<'_, '_>, m: &mut Mechanics) -> Result<()> {
    let kind = attribute(force, "type")?;
    m.forces.push(force.attribute("name").unwrap_or(kind).to_owned());
    if force.attribute("usesPeriodic").is_some_and(|v| v != "0") {
        return at(force, format!("{kind} uses periodic boundary conditions; they are not supported"));
    }
    match kind {
        "HarmonicBondForce" => {
            for b in children(force, "Bonds")? {
                m.bonds.push(Bond { atoms: [index(b, "p1")?, index(b, "p2")?], length: number(b, "d")?, k: number(b, "k")? });
            }
        }
        "HarmonicAngleForce" => {
            for a in children(force, "Angles")? {
                m.angles.push(Angle {
                    atoms: [index(a, "p1")?, index(a, "p2")?, index(a, "p3")?],
                    angle: number(a, "a")?,
                    k: number(a, "k")?,
                });
            }
        }
        "PeriodicTorsionForce" => {
            for t in children(force, "Torsions")? {
                m.torsions.push(Torsion {
                    atoms: [index(t, "p1")?, index(t, "p2")?, index(t, "p3")?, index(t, "p4")?],
                    periodicity: index(t, "periodicity")? as usize,
                    phase: number(t, "phase")?,
                    k: number(t, "k")?,
                });
            }
        }
        "RBTorsionForce" => {
            for t in children(force, "Torsions")? {
                let mut c = [0.0; 6];
                for (c, name) in c.iter_mut().zip(["c0", "c1", "c2", "c3", "c4", "c5"]) {
                    *c = number(t, name)?;
                }
                m.rb_torsions.push(RbTorsion { atoms: [index(t, "p1")?, index(t, "p2")?, index(t, "p3")?, index(t, "p4")?], c });
            }
        }
        "CMAPTorsionForce" => {
            // Another such force has maps of its own.
            let first = m.maps.len();
            for map in children(force, "Maps")? {
                m.maps.push(correction_map(map)?);
            }
            for t in children(force, "Torsions")? {
                let atoms = [
                    [index(t, "a1")?, index(t, "a2")?, index(t, "a3")?, index(t, "a4")?],
                    [index(t, "b1")?, index(t, "b2")?, index(t, "b3")?, index(t, "b4")?],
                ];
                m.map_torsions.push(MapTorsion { map: first + index(t, "map")? as usize, atoms });
            }
        }
        "NonbondedForce" => {
            if m.nonbonded.is_some() {
                return at(force, "a second NonbondedForce; one is supported".into());
            }
            m.nonbonded = Some(nonbonded(force)?);
        }
        "GBSAOBCForce" => set_born(force, m, gbsa_obc(force)?)?,
        "CustomGBForce" => set_born(force, m, custom_gb(force)?)?,
        "CMMotionRemover" => m.removes_drift = true,
        other => {
            let name = force.attribute("name").filter(|n| *n != other).map(|n| format!(" (`{n}`)")).unwrap_or_default();
            return at(
                force,
                format!(
                    "{other}{name} is not supported; known are HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, RBTorsionForce, \
                     CMAPTorsionForce, NonbondedForce (NoCutoff, CutoffNonPeriodic, CutoffPeriodic), GBSAOBCForce, CustomGBForce (OBC1 and \
                     OBC2 as OpenMM writes them) and CMMotionRemover"
                ),
            );
        }
    }
    Ok(())
}

fn set_born(force: Node<'_, '_>, m: &mut Mechanics, born: Born) -> Result<()> {
    if m.born.is_some() {
        return at(force, "a second generalised Born force; one is supported".into());
    }
    m.born = Some(born);
    Ok(())
}

/// Energies of a map, `size × size` of them.
fn correction_map(map: Node<'_, '_>) -> Result<Map> {
    let size = index(map, "size")? as usize;
    let energy = elements(map).map(|e| number(e, "e")).collect::<Result<Vec<f64>>>()?;
    // Patches are numbered in single precision.
    if !(3..=360).contains(&size) || energy.len() != size * size {
        return at(
            map,
            format!("a correction map of size {size} has {} energies; sizes 3 to 360 with size² energies are supported", energy.len()),
        );
    }
    Ok(Map { size, energy })
}

const METHODS: [&str; 6] = ["NoCutoff", "CutoffNonPeriodic", "CutoffPeriodic", "Ewald", "PME", "LJPME"];

/// The nonbonded method of a force, one of the first `known` of [`METHODS`].
fn method(force: Node<'_, '_>, known: usize) -> Result<usize> {
    let text = attribute(force, "method")?;
    match text.parse::<usize>() {
        Ok(method) if method < known => Ok(method),
        number => at(
            force,
            format!(
                "{} uses nonbonded method {} ({}); supported: {}",
                attribute(force, "type")?,
                beginning(text),
                number.ok().and_then(|k| METHODS.get(k)).unwrap_or(&"unknown"),
                METHODS[..known].join(", ")
            ),
        ),
    }
}

fn no_cutoff(force: Node<'_, '_>) -> Result<()> {
    method(force, 1).map(drop)
}

/// How a NonbondedForce is cut, or `None` where it is not.
fn cutoff(force: Node<'_, '_>) -> Result<Option<Cutoff>> {
    let method = method(force, 3)?;
    let flag = |name: &str| -> bool { force.attribute(name).is_some_and(|v| v != "0") };
    if method == 0 {
        return Ok(None);
    }
    if flag("exceptionsUsePeriodic") {
        return at(
            force,
            "NonbondedForce takes its exceptions between nearest images (exceptionsUsePeriodic); that is not supported".into(),
        );
    }
    if force.attribute("includeDirectSpace") == Some("0") {
        return at(force, "NonbondedForce leaves out its direct space; that is not supported".into());
    }
    let (distance, dielectric) = (number(force, "cutoff")?, number(force, "rfDielectric")?);
    if !(distance > 0.0 && dielectric > 0.0) {
        return at(
            force,
            format!(
                "NonbondedForce has cutoff {distance} nm and dielectric constant {dielectric} of the reaction field; both must be positive"
            ),
        );
    }
    let switch = if flag("useSwitchingFunction") { Some(number(force, "switchingDistance")?) } else { None };
    if let Some(s) = switch.filter(|s| !(0.0..distance).contains(s)) {
        return at(force, format!("NonbondedForce has the switching distance {s} nm, not between 0 and its cutoff of {distance} nm"));
    }
    Ok(Some(Cutoff { distance, periodic: method == 2, switch, dielectric, dispersion: method == 2 && flag("dispersionCorrection") }))
}

fn nonbonded(force: Node<'_, '_>) -> Result<Nonbonded> {
    let cutoff = cutoff(force)?;
    for section in ["GlobalParameters", "ParticleOffsets", "ExceptionOffsets"] {
        if let Some(first) = elements(force).find(|n| n.tag_name().name() == section).and_then(|n| elements(n).next()) {
            return at(first, format!("NonbondedForce has {section}; parameter offsets are not supported"));
        }
    }
    let mut particles = Vec::new();
    for p in children(force, "Particles")? {
        particles.push(Particle { charge: number(p, "q")?, sigma: number(p, "sig")?, epsilon: number(p, "eps")? });
    }
    let mut exceptions = Vec::new();
    for e in children(force, "Exceptions")? {
        exceptions.push(Exception {
            atoms: [index(e, "p1")?, index(e, "p2")?],
            charge_product: number(e, "q")?,
            sigma: number(e, "sig")?,
            epsilon: number(e, "eps")?,
        });
    }
    Ok(Nonbonded { particles, exceptions, cutoff, coulomb: COULOMB })
}

fn gbsa_obc(force: Node<'_, '_>) -> Result<Born> {
    no_cutoff(force)?;
    let mut particles = Vec::new();
    for p in children(force, "Particles")? {
        let radius = number(p, "r")?;
        particles.push(BornParticle { charge: number(p, "q")?, radius, scaled_radius: number(p, "scale")? * (radius - OFFSET) });
    }
    Ok(Born {
        particles,
        solute_dielectric: number(force, "soluteDielectric")?,
        solvent_dielectric: number(force, "solventDielectric")?,
        surface: 4.0 * std::f64::consts::PI * number(force, "surfaceAreaEnergy")?,
        probe: PROBE,
        offset: OFFSET,
        coulomb: COULOMB,
        rescaling: OBC2,
    })
}

/// The expressions of OpenMM's `implicit/obc1.xml` and `obc2.xml`, without spaces. Formulas: Onufriev, Bashford & Case,
/// *Proteins* 2004; Schaefer, Bartels & Karplus, *J. Mol. Biol.* 1998 (surface term).
mod expression {
    pub(super) const INTEGRAL: &str =
        "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0);U=r+sr2;L=max(or1,D);D=abs(r-sr2)";
    pub(super) const RADIUS_OBC1: &str = "1/(1/or-tanh(0.8*psi+2.909125*psi^3)/radius);psi=I*or;radius=or+offset;offset=0.009";
    pub(super) const RADIUS_OBC2: &str = "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius);psi=I*or;radius=or+offset;offset=0.009";
    /// First parts of the energy terms; what follows the first `;` are definitions.
    pub(super) const SELF: &str = "-0.5*138.935485*(1/soluteDielectric-1/solventDielectric)*charge^2/B";
    pub(super) const SURFACE: &str = "28.3919551*(radius+0.14)^2*(radius/B)^6";
    pub(super) const PAIR: &str = "-138.935485*(1/soluteDielectric-1/solventDielectric)*charge1*charge2/f";
    pub(super) const PAIR_F: &str = "sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))";
    pub(super) const COULOMB: f64 = 138.935485;
    pub(super) const SURFACE_ENERGY: f64 = 28.3919551;
}

fn custom_gb(force: Node<'_, '_>) -> Result<Born> {
    no_cutoff(force)?;
    let unknown = |node: Node<'_, '_>, what: String| {
        at(node, format!("CustomGBForce {what}; only the OBC1 and OBC2 models of OpenMM's implicit/obc1.xml and obc2.xml are supported"))
    };
    let names: Vec<_> = children(force, "PerParticleParameters")?.filter_map(|p| p.attribute("name")).collect();
    if names != ["charge", "or", "sr"] {
        return unknown(force, format!("has the per-particle parameters {}", names.join(", ")));
    }
    for section in ["GlobalParameters", "EnergyParameterDerivatives", "Exclusions", "Functions"] {
        if let Some(first) = elements(force).find(|n| n.tag_name().name() == section).and_then(|n| elements(n).next()) {
            return unknown(first, format!("has {section}"));
        }
    }
    let compact = |node: Node<'_, '_>| -> Result<String> { Ok(attribute(node, "expression")?.split_whitespace().collect()) };

    let values: Vec<_> = children(force, "ComputedValues")?.collect();
    let rescaling = match &values[..] {
        [integral, radius]
            if integral.attribute("name") == Some("I")
                && integral.attribute("type") == Some("2")
                && compact(*integral)? == expression::INTEGRAL
                && radius.attribute("name") == Some("B")
                && radius.attribute("type") == Some("0") =>
        {
            match compact(*radius)?.as_str() {
                expression::RADIUS_OBC1 => OBC1,
                expression::RADIUS_OBC2 => OBC2,
                other => return unknown(*radius, format!("computes Born radii by `{other}`")),
            }
        }
        _ => return unknown(force, "computes values that are not OBC's".into()),
    };

    let (mut born_self, mut pair, mut surface) = (false, false, 0.0);
    let mut dielectrics: Option<[f64; 2]> = None;
    for term in children(force, "EnergyTerms")? {
        let text = compact(term)?;
        let (main, definitions) = text.split_once(';').unwrap_or((&text, ""));
        let kind = term.attribute("type");
        let mut found = [None; 2];
        let mut f = None;
        for definition in definitions.split(';').filter(|d| !d.is_empty()) {
            let Some((name, value)) = definition.split_once('=') else {
                return unknown(term, format!("has the definition `{definition}`"));
            };
            let constant = value.parse::<f64>().ok();
            match (name, constant) {
                ("soluteDielectric", Some(x)) => found[0] = Some(x),
                ("solventDielectric", Some(x)) => found[1] = Some(x),
                // A salt term would appear in the main expression too.
                ("kappa", Some(0.0)) => {}
                ("kappa", Some(k)) => return unknown(term, format!("has ionic screening (kappa = {k})")),
                ("offset", Some(x)) if (x - OFFSET).abs() < 1e-9 => {}
                ("radius", None) if value == "or+offset" => {}
                ("f", None) if value == expression::PAIR_F => f = Some(()),
                _ => return unknown(term, format!("has the definition `{definition}`")),
            }
        }
        match (main, kind) {
            (expression::SELF, Some("0")) if !born_self => born_self = true,
            (expression::SURFACE, Some("0")) if surface == 0.0 => {
                surface = expression::SURFACE_ENERGY;
                continue;
            }
            (expression::PAIR, Some("2")) if !pair && f.is_some() => pair = true,
            _ => return unknown(term, format!("has the energy term `{main}`")),
        }
        let [Some(solute), Some(solvent)] = found else {
            return unknown(term, "does not define both dielectric constants".into());
        };
        if dielectrics.is_some_and(|d| d != [solute, solvent]) {
            return unknown(term, "defines two sets of dielectric constants".into());
        }
        dielectrics = Some([solute, solvent]);
    }
    let (true, true, Some([solute_dielectric, solvent_dielectric])) = (born_self, pair, dielectrics) else {
        return unknown(force, "lacks an energy term".into());
    };
    let mut particles = Vec::new();
    for p in children(force, "Particles")? {
        particles.push(BornParticle {
            charge: number(p, "param1")?,
            radius: number(p, "param2")? + OFFSET,
            scaled_radius: number(p, "param3")?,
        });
    }
    Ok(Born {
        particles,
        solute_dielectric,
        solvent_dielectric,
        surface,
        probe: PROBE,
        offset: OFFSET,
        coulomb: expression::COULOMB,
        rescaling,
    })
}

fn at<T>(node: Node<'_, '_>, message: String) -> Result<T> {
    let position = node.document().text_pos_at(node.range().start);
    Err(format!("line {}: {message}", position.row))
}

fn elements<'a, 'i>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(Node::is_element)
}

/// The elements inside the one child section `name`.
fn children<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Result<impl Iterator<Item = Node<'a, 'i>>> {
    match elements(node).find(|n| n.tag_name().name() == name) {
        Some(section) => Ok(elements(section)),
        None => at(node, format!("{} lacks <{name}>; the file is incomplete", node.attribute("type").unwrap_or(node.tag_name().name()))),
    }
}

fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str> {
    match node.attribute(name) {
        Some(value) => Ok(value),
        None => at(node, format!("<{}> lacks the attribute `{name}`", node.tag_name().name())),
    }
}

/// As much of `text` as a message can hold.
fn beginning(text: &str) -> &str {
    &text[..text.char_indices().nth(60).map_or(text.len(), |c| c.0)]
}

fn number(node: Node<'_, '_>, name: &str) -> Result<f64> {
    let text = attribute(node, name)?;
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => at(node, format!("{name} = `{}` is not a finite number", beginning(text))),
    }
}

fn index(node: Node<'_, '_>, name: &str) -> Result<u32> {
    let text = attribute(node, name)?;
    match text.parse::<u32>() {
        Ok(i) => Ok(i),
        Err(_) => at(node, format!("{name} = `{}` is not an index", beginning(text))),
    }
}
