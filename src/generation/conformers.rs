//! Ensembles of conformers: drawn, checked, drawn again where they are wrong, relaxed, and freed of duplicates.

use super::formula::molecule;
use crate::error::Result;
use crate::io::Frame;
use scorefield_integrators::relax::{Job, RelaxOptions, RelaxSpec, Relaxed, relax_all};
use scorefield_integrators::{ForceProvider, Progress, System};
use scorefield_models::ditmc::GraphContext;
use scorefield_models::ditmc::checks::{Faults, mirror_if_all_wrong};
use scorefield_models::ditmc::ensemble::Comparison;
use scorefield_models::ditmc::handedness::Handedness;
use scorefield_models::ditmc::sampler::Draw;
use scorefield_models::molecule::{Compare, Convention, Graph, Perceiver, Vocabulary};
use std::fmt;
use std::sync::Arc;

/// Å per nm.
pub const ANGSTROMS: f64 = 10.0;

/// A molecule whose conformers are wanted.
pub struct Subject {
    /// What people call it.
    pub name: String,
    /// Its graph, prepared for a network; all hydrogens are atoms.
    pub context: GraphContext,
    /// Canonical SMILES.
    pub smiles: String,
    /// Its atoms.
    pub system: Arc<System>,
    /// Structures `[N, 3]` (Å) that came with it.
    pub structures: Vec<Vec<f64>>,
}

impl Subject {
    /// The molecule of `graph`, whose implicit hydrogens become atoms.
    ///
    /// # Errors
    /// Where the network does not know one of its elements, or it is too large.
    pub fn new(name: String, graph: &Graph, vocabulary: Vocabulary) -> Result<Self> {
        let context = GraphContext::new(graph, vocabulary)?;
        let mut system = molecule(&context.types);
        system.name.clone_from(&name);
        system.charge = context.graph.charge();
        let mut bonds: Vec<(u32, u32)> =
            context.graph.bonds().iter().map(|b| (b.atoms.0.min(b.atoms.1), b.atoms.0.max(b.atoms.1))).collect();
        bonds.sort_unstable();
        system.bonds = bonds;
        let smiles = context.graph.to_smiles(Compare::Stereo);
        Ok(Subject { name, context, smiles, system: Arc::new(system), structures: Vec::new() })
    }

    /// The same molecule without the structures that came with it.
    pub fn without_structures(&self) -> Self {
        let Subject { name, context, smiles, system, .. } = self;
        let (name, smiles) = (name.clone(), smiles.clone());
        Subject { name, context: context.clone(), smiles, system: system.clone(), structures: Vec::new() }
    }

    /// A frame of a conformer `[N, 3]` (Å).
    pub fn frame(&self, x: &[f64]) -> Frame {
        let mut frame = Frame::new(self.system.clone(), x.iter().map(|x| x / ANGSTROMS).collect());
        frame.graph = Some(Arc::new(self.context.graph.clone()));
        frame.title.clone_from(&self.name);
        frame.properties.insert("SMILES".into(), self.smiles.clone());
        frame
    }
}

/// What became of draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Conformers that were drawn, those that were rejected among them.
    pub drawn: usize,
    /// Mirrored, which mended all their centres.
    pub mirrored: usize,
    /// Refined after wrong centres were turned around.
    pub mended: usize,
    /// Rejected for broken bonds.
    pub bonds: usize,
    /// Rejected for atoms that are too close.
    pub clashes: usize,
    /// Rejected for the handedness of an atom.
    pub centres: usize,
    /// Rejected for the arrangement at a double bond.
    pub double_bonds: usize,
    /// Rejected for numbers that are not finite.
    pub not_finite: usize,
    /// Given up after the last attempt.
    pub given_up: usize,
    /// Did not converge, failed, or became another molecule when they were relaxed.
    pub lost: usize,
    /// Duplicates that were left out.
    pub duplicates: usize,
    /// Delivered.
    pub kept: usize,
}

impl Tally {
    /// Adds counts.
    pub fn add(&mut self, o: &Tally) {
        for (a, b) in [
            (&mut self.drawn, o.drawn),
            (&mut self.mirrored, o.mirrored),
            (&mut self.mended, o.mended),
            (&mut self.bonds, o.bonds),
            (&mut self.clashes, o.clashes),
            (&mut self.centres, o.centres),
            (&mut self.double_bonds, o.double_bonds),
            (&mut self.not_finite, o.not_finite),
            (&mut self.given_up, o.given_up),
            (&mut self.lost, o.lost),
            (&mut self.duplicates, o.duplicates),
            (&mut self.kept, o.kept),
        ] {
            *a += b;
        }
    }

    fn reject(&mut self, faults: &Faults) {
        self.not_finite += usize::from(faults.not_finite);
        self.bonds += usize::from(!faults.bonds.is_empty());
        self.clashes += usize::from(!faults.clashes.is_empty());
        self.centres += usize::from(!faults.centres.is_empty());
        self.double_bonds += usize::from(!faults.double_bonds.is_empty());
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} conformers of {} drawn; {} mirrored, {} mended; rejected for bonds {}, clashes {}, handedness {}, E/Z {}, not finite {}; given up {}; lost in \
             relaxation {}; duplicates {}",
            self.kept,
            self.drawn,
            self.mirrored,
            self.mended,
            self.bonds,
            self.clashes,
            self.centres,
            self.double_bonds,
            self.not_finite,
            self.given_up,
            self.lost,
            self.duplicates
        )
    }
}

/// Draws conformers: `[N, 3]` (Å) each.
pub type DrawConformers<'a> = dyn Fn(&GraphContext, &[Draw<'_>]) -> Vec<Vec<f64>> + Sync + 'a;

/// How conformers are relaxed and ranked.
pub struct Relaxation<'a> {
    /// The threads that work.
    pub pool: &'a rayon::ThreadPool,
    /// The forces.
    pub provider: &'a dyn ForceProvider,
    /// The minimiser.
    pub method: RelaxSpec,
    /// Precision, threads, steps, and how to stop.
    pub options: RelaxOptions<'a>,
}

impl Relaxation<'_> {
    /// The minimum of each structure, where it was reached.
    ///
    /// # Errors
    /// Where relaxation cannot begin.
    pub fn minima(&self, jobs: Vec<Job>) -> Result<Vec<Option<Relaxed>>> {
        let mut minima: Vec<Option<Relaxed>> = jobs.iter().map(|_| None).collect();
        let results = std::sync::Mutex::new(&mut minima);
        let provider = self.provider.fork()?;
        let (method, options, list) = (&self.method, &self.options, &results);
        self.pool.install(move || {
            relax_all(jobs, provider.as_ref(), method, options, |index, result| {
                if let (Ok(mut list), Ok(result)) = (list.lock(), result) {
                    list[index] = (result.progress == Progress::Converged).then_some(result);
                }
            })
        })?;
        Ok(minima)
    }
}

/// How an ensemble is made.
pub struct Recipe<'a> {
    /// Draws.
    pub draw: &'a DrawConformers<'a>,
    /// How often a conformer is drawn at most, refinements not counted.
    pub attempts: u32,
    /// Turn wrong centres and double bonds around and refine what is wrong, before it is drawn anew.
    pub mend: bool,
    /// Conformers follow from each other.
    pub hop: Option<Hop>,
    /// Relax them with these forces, and rank them by energy.
    pub relaxation: Option<Relaxation<'a>>,
    /// Conformers nearer than this (Å, heavy atoms) are duplicates; 0 keeps all.
    pub duplicates: f64,
}

/// Chains of conformers: each is the one before after noise and its way back, so that a chain hops from minimum to minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hop {
    /// The time whose noise a hop begins with: the smaller, the further.
    pub time: f64,
    /// Chains that run beside each other.
    pub chains: u32,
}

/// A delivered conformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Conformer {
    /// Its number among those that were asked for.
    pub number: u32,
    /// Positions `[N, 3]` (Å).
    pub x: Vec<f64>,
    /// Energy (kJ/mol), where it was relaxed with a potential.
    pub energy: Option<f64>,
    /// How often it was drawn anew.
    pub rounds: u32,
}

/// Makes an ensemble of `count` conformers of `subject`, whose noise has the numbers from `first` on; lowest energies first.
///
/// # Errors
/// Where relaxation cannot begin.
pub fn ensemble(subject: &Subject, count: u32, first: u32, recipe: &Recipe<'_>) -> Result<(Vec<Conformer>, Tally)> {
    let structures = &subject.structures;
    let given = |k: u32| (!structures.is_empty()).then(|| (structures[k as usize % structures.len()].as_slice(), None));
    let (mut conformers, mut tally) = match recipe.hop {
        None => drawn(subject, (0..count).collect(), &given, first, recipe),
        Some(hop) => hopped(subject, count, first, hop, recipe),
    };
    if let Some(relaxation) = &recipe.relaxation {
        let before = conformers.len();
        conformers = relaxed(subject, conformers, relaxation)?;
        tally.lost = before - conformers.len();
        conformers.sort_by(|a, b| a.energy.unwrap_or(0.0).total_cmp(&b.energy.unwrap_or(0.0)).then(a.number.cmp(&b.number)));
    }
    if recipe.duplicates > 0.0 {
        let before = conformers.len();
        let positions: Vec<Vec<f64>> = conformers.iter().map(|c| c.x.clone()).collect();
        let kept = Comparison::new(&subject.context.graph).distinct(&positions, recipe.duplicates);
        conformers = kept.into_iter().map(|k| conformers[k].clone()).collect();
        tally.duplicates = before - conformers.len();
    }
    tally.kept = conformers.len();
    Ok((conformers, tally))
}

/// Chains of conformers: conformer `k` follows from the last one of chain `k mod chains`, the first ones from the molecule's structures or
/// from noise.
fn hopped(subject: &Subject, count: u32, first: u32, hop: Hop, recipe: &Recipe<'_>) -> (Vec<Conformer>, Tally) {
    let chains = hop.chains.clamp(1, count.max(1));
    let structures = &subject.structures;
    let start = |c: u32| (!structures.is_empty()).then(|| structures[c as usize % structures.len()].clone());
    let mut last: Vec<Option<Vec<f64>>> = (0..chains).map(start).collect();
    let (mut all, mut tally) = (Vec::new(), Tally::default());
    for from in (0..count).step_by(chains as usize) {
        let numbers = (from..count.min(from + chains)).collect();
        let given = |k: u32| last[(k % chains) as usize].as_deref().map(|x| (x, Some(hop.time)));
        let (done, counts) = drawn(subject, numbers, &given, first, recipe);
        tally.add(&counts);
        for conformer in &done {
            last[(conformer.number % chains) as usize] = Some(conformer.x.clone());
        }
        all.extend(done);
    }
    (all, tally)
}

/// Where a draw starts, and at which time.
type Start<'a> = Option<(&'a [f64], Option<f64>)>;

/// What is left to draw.
struct Pending {
    number: u32,
    /// The last draw with its centres turned around.
    mended: Option<Vec<f64>>,
    /// How often that was done since it was drawn anew.
    mends: u32,
    /// How often it was drawn anew, the first time among them.
    draws: u32,
}

/// The time from which mended conformers are refined: late enough for the centres to stay, early enough for strain to go.
const MENDED_FROM: f64 = 0.8;
/// How often a conformer is mended before it is drawn anew.
const MOST_MENDS: u32 = 3;

/// Draws conformers `numbers` until all are right or attempts are used up; `given` is where they start.
fn drawn<'a>(
    subject: &Subject,
    numbers: Vec<u32>,
    given: &dyn Fn(u32) -> Start<'a>,
    first: u32,
    recipe: &Recipe<'_>,
) -> (Vec<Conformer>, Tally) {
    let graph = &subject.context.graph;
    let handedness = recipe.mend.then(|| Handedness::new(graph));
    let mut tally = Tally::default();
    let mut done = Vec::new();
    let mut pending: Vec<Pending> = numbers.into_iter().map(|number| Pending { number, mended: None, mends: 0, draws: 1 }).collect();
    for round in 0.. {
        let draws: Vec<Draw<'_>> = pending
            .iter()
            .map(|p| {
                let from = p.mended.as_deref().map_or_else(|| given(p.number), |x| Some((x, Some(MENDED_FROM))));
                Draw { id: first.wrapping_add(p.number), round, given: from.map(|f| f.0), start: from.and_then(|f| f.1) }
            })
            .collect();
        let drawn = (recipe.draw)(&subject.context, &draws);
        tally.drawn += drawn.len();
        let mut next = Vec::new();
        for (&Pending { number, mends, draws, .. }, mut x) in pending.iter().zip(drawn) {
            let mut faults = Faults::of(graph, &x);
            if faults.is_stereo_only() && mirror_if_all_wrong(graph, &faults, &mut x) {
                tally.mirrored += 1;
                faults = Faults::of(graph, &x);
            }
            // A network that knows nothing of E/Z may turn back what was mended: half a turn about the double bond strains nothing, and stays.
            if mends > 0
                && faults.is_stereo_only()
                && faults.centres.is_empty()
                && handedness.as_ref().is_some_and(|h| h.mend(graph, &mut x) > 0)
            {
                tally.mended += 1;
                faults = Faults::of(graph, &x);
            }
            if faults.is_empty() {
                done.push(Conformer { number, x, energy: None, rounds: round });
            } else {
                tally.reject(&faults);
                let may = mends < MOST_MENDS && !faults.not_finite;
                let mended = may && handedness.as_ref().is_some_and(|h| h.mend_or_mirror(graph, &mut x));
                tally.mended += usize::from(mended);
                if mended {
                    next.push(Pending { number, mended: Some(x), mends: mends + 1, draws });
                } else if draws < recipe.attempts {
                    next.push(Pending { number, mended: None, mends: 0, draws: draws + 1 });
                } else {
                    tally.given_up += 1;
                }
            }
        }
        pending = next;
        if pending.is_empty() {
            break;
        }
    }
    done.sort_by_key(|c| c.number);
    (done, tally)
}

/// Those that reached a minimum and are still the molecule.
fn relaxed(subject: &Subject, conformers: Vec<Conformer>, relaxation: &Relaxation<'_>) -> Result<Vec<Conformer>> {
    let job = |c: &Conformer| Job { system: subject.system.clone(), positions: c.x.iter().map(|x| x / ANGSTROMS).collect(), cell: None };
    let jobs: Vec<Job> = conformers.iter().map(job).collect();
    let mut kept = Vec::new();
    for (conformer, minimum) in conformers.into_iter().zip(relaxation.minima(jobs)?) {
        let Some(minimum) = minimum else { continue };
        let x: Vec<f64> = minimum.positions.iter().map(|x| x * ANGSTROMS).collect();
        if Faults::of(&subject.context.graph, &x).is_empty() {
            kept.push(Conformer { x, energy: minimum.energy, ..conformer });
        }
    }
    kept.sort_by_key(|c| c.number);
    Ok(kept)
}

/// The molecule of a frame, with the handedness of its coordinates; and whether all its hydrogens were there.
///
/// # Errors
/// Where the frame has no bonds and they cannot be perceived.
pub fn graph_of(frame: &Frame, perceiver: &mut Perceiver) -> scorefield_models::molecule::Result<(Graph, bool)> {
    let mut graph = match &frame.graph {
        Some(graph) => (**graph).clone(),
        None => {
            let convention = Convention { charge: frame.system.charge, ..Convention::default() };
            perceiver.perceive(&frame.system.types, &frame.positions, convention)?
        }
    };
    let whole = graph.imply_hydrogens() == 0 && graph.atoms().iter().all(|a| a.hydrogens == 0);
    let rings = graph.find_aromaticity();
    if whole {
        graph.set_stereo_from(&frame.positions, &rings);
    }
    Ok((graph, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network that only ever draws cis-difluoroethene, also from what was mended.
    #[test]
    fn an_arrangement_that_is_turned_back_is_turned_once_more() {
        let graph = Graph::from_smiles("F/C=C/F").unwrap();
        let subject = Subject::new("test".into(), &graph, Vocabulary::Drugs).unwrap();
        let cis = vec![-1.1, 1.2, 0.0, 0.0, 0.66, 0.0, 0.0, -0.66, 0.0, -1.1, -1.2, 0.0, 0.94, 1.2, 0.0, 0.94, -1.2, 0.0];
        let faults = Faults::of(&subject.context.graph, &cis);
        assert!(faults.is_stereo_only() && faults.double_bonds == [1]);
        let draw = |_: &GraphContext, draws: &[Draw<'_>]| draws.iter().map(|_| cis.clone()).collect::<Vec<_>>();
        let recipe = Recipe { draw: &draw, attempts: 1, mend: true, hop: None, relaxation: None, duplicates: 0.0 };
        let (conformers, tally) = ensemble(&subject, 2, 0, &recipe).unwrap();
        assert_eq!((tally.kept, tally.drawn, tally.double_bonds, tally.mended, tally.given_up), (2, 4, 2, 4, 0));
        assert!(conformers.iter().all(|c| Faults::of(&subject.context.graph, &c.x).is_empty()));
        // Without moves it is given up.
        let (conformers, tally) = ensemble(&subject, 2, 0, &Recipe { mend: false, ..recipe }).unwrap();
        assert!(conformers.is_empty() && tally.given_up == 2);
    }

    /// Chloro-fluoro-bromo-methane: right, mirrored, torn.
    #[test]
    fn wrong_conformers_are_mirrored_or_drawn_anew() {
        let graph = Graph::from_smiles("F[C@H](Cl)Br").unwrap();
        let subject = Subject::new("test".into(), &graph, Vocabulary::Drugs).unwrap();
        let mut right = vec![0.8, 0.8, 0.8, 0.0, 0.0, 0.0, -1.0, -1.0, 1.0, -1.1, 1.1, -1.1, 0.6, -0.6, -0.6];
        let mirror = |x: &[f64]| -> Vec<f64> { x.chunks(3).flat_map(|p| [p[0], p[1], -p[2]]).collect() };
        if !Faults::of(&subject.context.graph, &right).is_empty() {
            right = mirror(&right);
        }
        assert!(Faults::of(&subject.context.graph, &right).is_empty());
        let (left, mut torn) = (mirror(&right), right.clone());
        torn[0] += 5.0;
        let draw = |_: &GraphContext, draws: &[Draw<'_>]| -> Vec<Vec<f64>> {
            let one = |d: &Draw<'_>| match (d.id - 100, d.round) {
                (0, _) => right.clone(),
                (1, _) => left.clone(),
                (2, 0) => torn.clone(),
                (2, _) => right.clone(),
                _ => vec![f64::NAN; 15],
            };
            draws.iter().map(one).collect()
        };
        let recipe = Recipe { draw: &draw, attempts: 3, mend: true, hop: None, relaxation: None, duplicates: 0.0 };
        let (conformers, tally) = ensemble(&subject, 4, 100, &recipe).unwrap();
        assert_eq!(conformers.iter().map(|c| (c.number, c.rounds)).collect::<Vec<_>>(), vec![(0, 0), (1, 0), (2, 1)]);
        assert_eq!((tally.drawn, tally.mirrored, tally.bonds, tally.not_finite, tally.given_up, tally.kept), (7, 1, 1, 3, 1, 3));
        let (conformers, tally) = ensemble(&subject, 3, 100, &Recipe { duplicates: 0.1, ..recipe }).unwrap();
        assert_eq!((conformers.len(), tally.duplicates), (1, 2));
    }

    /// One of two centres wrong: it is turned around and refined from there; without mending all is drawn anew until attempts are used up.
    #[test]
    fn single_wrong_centres_are_mended() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/molecule/centres.json");
        let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let glucose = file.as_array().unwrap().iter().find(|m| m["name"] == "glucose").unwrap();
        let right: Vec<f64> = glucose["positions"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        // Galactose is glucose with one centre turned around.
        let graph = Graph::from_smiles("OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@H]1O").unwrap();
        let subject = Subject::new("galactose".into(), &graph, Vocabulary::Drugs).unwrap();
        assert_eq!(Faults::of(&subject.context.graph, &right).centres.len(), 1);
        let seen = std::sync::Mutex::new(Vec::new());
        // What is refined stays as it is; all else is glucose.
        let draw = |_: &GraphContext, draws: &[Draw<'_>]| -> Vec<Vec<f64>> {
            seen.lock().unwrap().extend(draws.iter().map(|d| d.start));
            draws.iter().map(|d| d.given.map_or_else(|| right.clone(), <[f64]>::to_vec)).collect()
        };
        let recipe = |mend| Recipe { draw: &draw, attempts: 4, mend, hop: None, relaxation: None, duplicates: 0.0 };
        let (conformers, tally) = ensemble(&subject, 2, 0, &recipe(true)).unwrap();
        assert_eq!((conformers.len(), tally.drawn, tally.mended, tally.centres), (2, 4, 2, 2), "{tally}");
        assert!(conformers.iter().all(|c| Faults::of(&subject.context.graph, &c.x).is_empty()));
        assert_eq!(*seen.lock().unwrap(), vec![None, None, Some(MENDED_FROM), Some(MENDED_FROM)]);
        let (conformers, tally) = ensemble(&subject, 2, 0, &recipe(false)).unwrap();
        assert_eq!((conformers.len(), tally.drawn, tally.mended, tally.given_up), (0, 8, 0, 2));
    }

    /// Chains go on from their own last conformer, and from it again where a hop failed.
    #[test]
    fn hops_follow_from_each_other() {
        let graph = Graph::from_smiles("C").unwrap();
        let subject = Subject::new("methane".into(), &graph, Vocabulary::Drugs).unwrap();
        let methane = [0.0, 0.0, 0.0, 0.63, 0.63, 0.63, -0.63, -0.63, 0.63, -0.63, 0.63, -0.63, 0.63, -0.63, -0.63];
        // A hop shifts all by 1 Å and marks its chain; conformer 2 fails.
        let draw = |_: &GraphContext, draws: &[Draw<'_>]| -> Vec<Vec<f64>> {
            let hop = |d: &Draw<'_>| -> Vec<f64> {
                let from = d.given.map_or_else(|| methane.iter().map(|x| x + 100.0 * f64::from(d.id)).collect(), <[f64]>::to_vec);
                assert_eq!(d.start, d.given.map(|_| 0.3));
                if d.id == 2 { vec![f64::NAN; 15] } else { from.iter().map(|x| x + 1.0).collect() }
            };
            draws.iter().map(hop).collect()
        };
        let hop = Some(Hop { time: 0.3, chains: 2 });
        let recipe = Recipe { draw: &draw, attempts: 1, mend: true, hop, relaxation: None, duplicates: 0.0 };
        let (conformers, tally) = ensemble(&subject, 6, 0, &recipe).unwrap();
        let at: Vec<(u32, f64)> = conformers.iter().map(|c| (c.number, c.x[0])).collect();
        assert_eq!(at, vec![(0, 1.0), (1, 101.0), (3, 102.0), (4, 2.0), (5, 103.0)]);
        assert_eq!((tally.drawn, tally.given_up, tally.kept), (6, 1, 5));
    }
}
