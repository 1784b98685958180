//! The φ/ψ free energy of a peptide while it is simulated: counted, printed as a map of characters, and written as SVG
//! and CSV.

use super::plots::{LinePlot, Series, line_plot};
use super::svg::{Anchor, Font, INK, LABEL, Svg, TICK, TITLE, number, ticks};
use crate::analysis::free_energy::{BASINS, BIN_DEGREES, BINS, Landscape, Population, TorusHistogram, bin_centre};
use crate::analysis::geometry::{BackboneTorsions, backbone_torsions, dihedral};
use crate::error::{Error, Result};
use scorefield_integrators::System;
use scorefield_integrators::units::BOLTZMANN;
use std::fmt::Write;

/// Blocks for errors: of replicas where there are enough of them, else of time.
const BLOCKS: usize = 16;
/// From this many replicas on, their spread gives the error; it then needs no assumption about correlation times.
const ENOUGH_REPLICAS: usize = 8;
/// Most residues that are counted: 20 MB of counts.
const MOST_RESIDUES: usize = 32;
/// Most residues whose maps are printed; the others' basins are.
const MOST_PRINTED: usize = 2;

/// Counts the backbone torsions of one molecule over replicas and time. Its state is a few whole numbers, so that a resumed
/// run ends with the same bytes.
#[derive(Clone, Debug)]
pub struct FreeEnergyAccumulator {
    residues: Vec<BackboneTorsions>,
    omitted: usize,
    replicas: usize,
    samples: u64,
    /// Samples per block of time.
    block_length: u64,
    maps: Vec<TorusHistogram>,
}

/// What a run shows of its free energies.
#[derive(Clone, Debug, PartialEq)]
pub struct FreeEnergyReport {
    /// For the terminal, at most 80 columns wide, without a final newline.
    pub text: String,
    /// File names and contents: per residue a map as SVG and CSV, and its profiles as SVG.
    pub files: Vec<(String, String)>,
}

impl FreeEnergyAccumulator {
    /// For `replicas` independent replicas of `system`; `None` where it has no peptide backbone.
    pub fn for_system(system: &System, replicas: usize) -> Option<Self> {
        let mut residues = backbone_torsions(system);
        if residues.is_empty() {
            return None;
        }
        let omitted = residues.len().saturating_sub(MOST_RESIDUES);
        residues.truncate(MOST_RESIDUES);
        let maps = vec![TorusHistogram::new(BLOCKS); residues.len()];
        Some(FreeEnergyAccumulator { residues, omitted, replicas: replicas.max(1), samples: 0, block_length: 1, maps })
    }

    /// Counts one frame of `replica` (from 0, of all replicas wherever they run) in `report` (from 0): positions `[N, 3]` in nm,
    /// whole molecules. Reports rise.
    pub fn add(&mut self, report: u64, replica: usize, positions: &[f64]) {
        let block = if self.replicas >= ENOUGH_REPLICAS {
            replica % BLOCKS
        } else {
            let place = report * self.replicas as u64 + replica as u64;
            while place >= self.block_length * BLOCKS as u64 {
                // All blocks are full: join neighbours, so that their number stays and their length doubles.
                self.double();
            }
            ((place / self.block_length) as usize).min(BLOCKS - 1)
        };
        self.samples += 1;
        for (residue, map) in self.residues.iter().zip(&mut self.maps) {
            map.add(block, dihedral(positions, residue.phi), dihedral(positions, residue.psi));
        }
    }

    fn double(&mut self) {
        self.maps.iter_mut().for_each(TorusHistogram::merge_pairs);
        self.block_length *= 2;
    }

    /// Takes up what [`state`](Self::state) gave for other replicas of the same run.
    ///
    /// # Errors
    /// Where the counts are of another run.
    pub fn join(&mut self, state: &[u64]) -> Result<()> {
        let mut other = self.clone();
        other.restore(state)?;
        while self.block_length < other.block_length {
            self.double();
        }
        while other.block_length < self.block_length {
            other.double();
        }
        self.samples += other.samples;
        for (map, other) in self.maps.iter_mut().zip(&other.maps) {
            map.counts_mut().iter_mut().zip(other.counts()).for_each(|(a, b)| *a += b);
        }
        Ok(())
    }

    /// The counts, for a checkpoint: a header, then (place, count) of every count that is not zero.
    pub fn state(&self) -> Vec<u64> {
        let mut state = self.header().to_vec();
        state.extend([self.samples, self.block_length]);
        for (r, map) in self.maps.iter().enumerate() {
            let first = r * map.counts().len();
            for (k, &count) in map.counts().iter().enumerate().filter(|c| *c.1 > 0) {
                state.extend([(first + k) as u64, count]);
            }
        }
        state
    }

    /// Takes up the counts that [`state`](Self::state) gave for the same molecule and number of replicas.
    ///
    /// # Errors
    /// Where they are of another run.
    pub fn restore(&mut self, state: &[u64]) -> Result<()> {
        let wrong = || Err(Error::Run("the checkpoint's free-energy counts are of another molecule or number of replicas".into()));
        let header = self.header();
        let (Some(head), Some(&[samples, block_length]), Some(pairs)) =
            (state.get(..header.len()), state.get(header.len()..header.len() + 2), state.get(header.len() + 2..))
        else {
            return wrong();
        };
        if head != header || pairs.len() % 2 != 0 || block_length == 0 {
            return wrong();
        }
        let mut maps = vec![TorusHistogram::new(BLOCKS); self.residues.len()];
        let size = BLOCKS * BINS * BINS;
        for pair in pairs.chunks_exact(2) {
            let place = usize::try_from(pair[0]).unwrap_or(usize::MAX);
            match maps.get_mut(place / size).and_then(|m| m.counts_mut().get_mut(place % size)) {
                Some(count) => *count = pair[1],
                None => return wrong(),
            }
        }
        self.maps = maps;
        self.samples = samples;
        self.block_length = block_length;
        Ok(())
    }

    /// What must agree for counts to be taken up.
    fn header(&self) -> [u64; 4] {
        [self.residues.len() as u64, BLOCKS as u64, BINS as u64, self.replicas as u64]
    }

    /// Number of frames counted.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Maps, basins and profiles at `temperature` in K; with `unicode` false the text is plain ASCII. `None` before the
    /// first sample.
    pub fn report(&self, temperature: f64, unicode: bool) -> Option<FreeEnergyReport> {
        if self.maps.iter().all(|m| m.samples() == 0) {
            return None;
        }
        let kt = BOLTZMANN * temperature;
        let mut text = String::new();
        let mut files = Vec::new();
        for (r, (residue, map)) in self.residues.iter().zip(&self.maps).enumerate() {
            let populations = map.populations();
            let heading = format!("Free energy of {}/{}, {}, {temperature:.0} K, {} samples", "φ", "ψ", residue.label, map.samples());
            if r < MOST_PRINTED {
                let _ = writeln!(text, "{}{heading}\n", if r > 0 { "\n" } else { "" });
                text += &terminal_map(&map.landscape(kt, MERGE), &populations, kt, unicode);
            } else {
                if r == MOST_PRINTED {
                    text += "\n";
                }
                text += &one_line(&residue.label, &populations);
            }
            let stem =
                if self.residues.len() == 1 { "free-energy".to_owned() } else { format!("free-energy-{}", file_part(&residue.label, r)) };
            let title = format!("Free energy of {} at {temperature:.0} K", residue.label);
            files.push((format!("{stem}.svg"), svg_map(&title, &map.landscape(kt, [1, 1]))));
            files.push((format!("{stem}.csv"), csv_map(&map.landscape(kt, [1, 1]))));
            files.push((format!("{stem}-profiles.svg"), profiles(&title, map, kt)));
        }
        if self.omitted > 0 {
            let _ = writeln!(text, "({} further residues are not counted)", self.omitted);
        }
        let basins = BASINS.map(|b| format!("{} φ {:.0}..{:.0} ψ {:.0}..{:.0}", b.name, b.phi.0, b.phi.1, b.psi.0, b.psi.1));
        text += &format!("Basins in degrees: {};\n  {}", basins[..2].join("; "), basins[2..].join("; "));
        Some(FreeEnergyReport { text: if unicode { text } else { ascii(&text) }, files })
    }
}

/// Bins per character: 10° × 20°, for characters are twice as high as wide.
const MERGE: [usize; 2] = [2, 4];
/// Upper ends of the shades in kJ/mol; the last shade has none.
const SHADES: [(char, f64); 6] = [('█', 2.5), ('▓', 5.0), ('▒', 10.0), ('░', 15.0), ('·', f64::INFINITY), (' ', f64::NAN)];

/// 36 × 18 characters, ψ upwards, with shades and basins on the right: 78 columns.
fn terminal_map(map: &Landscape, populations: &[Population], kt: f64, unicode: bool) -> String {
    let (columns, rows) = (BINS / MERGE[0], BINS / MERGE[1]);
    let mut notes = vec![String::new(), "kJ/mol".to_owned()];
    let mut low = 0.0;
    for (shade, high) in SHADES {
        notes.push(match high {
            h if h.is_finite() => format!("{shade}{shade} {low:>4.1} to {h:>4.1}"),
            h if h.is_infinite() => format!("{shade}{shade} {low:>4.1} and more"),
            _ => "   never seen".to_owned(),
        });
        low = if high.is_finite() { high } else { low };
    }
    notes.push(String::new());
    notes.push("basin   population %   ΔF kJ/mol".to_owned());
    let most = populations.iter().map(|p| p.fraction).fold(0.0, f64::max);
    for p in populations {
        let free_energy = if p.fraction > 0.0 { format!("{:>5.1}", (kt * (most / p.fraction).ln()).abs()) } else { "    -".to_owned() };
        notes.push(format!("{:<7} {}   {free_energy}", p.basin, percent(p)));
    }
    let mut text = String::new();
    let axis = if unicode { ['┤', '│', '└', '─', '┴'] } else { ['+', '|', '+', '-', '+'] };
    for row in 0..rows {
        // Row 0 is the highest ψ; labels stand at the upper edge of their row's stretch.
        let psi = 180 - 360 * row as i32 / rows as i32;
        let label =
            if psi % 60 == 0 { format!("{psi:>5} {}", axis[0]) } else { format!("{:>5} {}", if row == 1 { "ψ" } else { "" }, axis[1]) };
        let cells: String = (0..columns).map(|i| shade(map.free_energy[i * rows + (rows - 1 - row)])).collect();
        let note = notes.get(row).map_or("", String::as_str);
        let _ = writeln!(text, "{}", format!("{label}{cells}{}  {note}", axis[1]).trim_end());
    }
    let mut ruler = format!(" -180 {}", axis[2]);
    ruler.extend((0..columns).map(|i| if i % 9 == 8 { axis[4] } else { axis[3] }));
    let _ = writeln!(text, "{ruler}");
    // −180 below the corner, then every 90°.
    let _ = writeln!(text, "     -180     -90       0       90      180  φ\n");
    text
}

fn shade(free_energy: f64) -> char {
    if free_energy.is_infinite() {
        return ' ';
    }
    SHADES.iter().find(|(_, high)| free_energy < *high).map_or('·', |s| s.0)
}

/// `62.1 ± 0.4`, 12 columns.
fn percent(p: &Population) -> String {
    let (value, error) = (100.0 * p.fraction, 100.0 * p.standard_error);
    let decimals = if value < 1.0 { 2 } else { 1 };
    if error.is_finite() { format!("{value:>5.decimals$} ± {error:<4.decimals$}") } else { format!("{value:>5.decimals$}       ") }
}

fn one_line(label: &str, populations: &[Population]) -> String {
    let parts: Vec<String> = populations.iter().map(|p| format!("{} {}", p.basin, percent(p).trim())).collect();
    format!("{label}: {} %\n", parts.join(", "))
}

/// The same text for terminals without UTF-8.
fn ascii(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            'φ' => plain += "phi",
            'ψ' => plain += "psi",
            'β' => plain += "b",
            'α' => plain += "a",
            'Δ' => plain += "d",
            '±' => plain += "~",
            '█' => plain += "#",
            '▓' => plain += "*",
            '▒' => plain += "=",
            '░' => plain += "-",
            '·' => plain += ".",
            c if c.is_ascii() => plain.push(c),
            _ => plain.push('?'),
        }
    }
    // The label of the ψ axis grew by two letters.
    plain.replace("    psi |", "  psi |")
}

/// A residue's label as part of a file name: letters and digits only, for it comes from a file.
fn file_part(label: &str, place: usize) -> String {
    let clean: String = label.chars().filter(char::is_ascii_alphanumeric).take(24).collect();
    format!("{}-{clean}", place + 1)
}

/// `phi_deg,psi_deg,free_energy_kJ_mol,standard_error_kJ_mol,count`, bins' centres; empty where there is no number.
fn csv_map(map: &Landscape) -> String {
    let mut text = String::from("phi_deg,psi_deg,free_energy_kJ_mol,standard_error_kJ_mol,count\n");
    let cell = |x: f64| if x.is_finite() { format!("{x:.4}") } else { String::new() };
    for i in 0..BINS {
        for j in 0..BINS {
            let k = i * BINS + j;
            let (f, e) = (cell(map.free_energy[k]), cell(map.standard_error[k]));
            let _ = writeln!(text, "{},{},{f},{e},{}", bin_centre(i), bin_centre(j), map.counts[k]);
        }
    }
    text
}

/// Free energies over φ and over ψ alone.
fn profiles(title: &str, map: &TorusHistogram, kt: f64) -> String {
    let series = |axis: usize, name: &str| {
        let profile = map.profile(kt, axis);
        let points = profile.free_energy.iter().enumerate().map(|(i, &f)| (bin_centre(i), f)).collect();
        Series { name: name.into(), points, errors: profile.standard_error }
    };
    line_plot(&LinePlot {
        title: title.into(),
        x_label: "angle / °".into(),
        y_label: "free energy / kJ/mol".into(),
        series: vec![series(0, "φ"), series(1, "ψ")],
        x_ticks: Some((-3..=3).map(|i| 60.0 * f64::from(i)).collect()),
        log_y: false,
    })
}

/// Pixels per bin.
const CELL: f64 = 7.0;
const SIDE: f64 = CELL * BINS as f64;
const LEFT: f64 = 78.0;
const TOP: f64 = 46.0;
const BAR: f64 = LEFT + SIDE + 26.0;
/// Shades of the colour bar.
pub(super) const LEVELS: usize = 128;

fn svg_map(title: &str, map: &Landscape) -> String {
    let highest = map.free_energy.iter().copied().filter(|f| f.is_finite()).fold(0.0, f64::max);
    // A round end of the scale, and never so high that the basins are all one colour.
    let end = (5.0 * (highest / 5.0).ceil()).clamp(5.0, 40.0);
    let mut svg = Svg::new(BAR + 92.0, TOP + SIDE + 62.0);
    svg.text((LEFT, 28.0), Anchor::Start, TITLE, title);
    svg.open_cells();
    let level = |f: f64| f.is_finite().then(|| ((f / end * LEVELS as f64) as usize).min(LEVELS - 1));
    for j in 0..BINS {
        // Neighbours of one colour are one rectangle.
        let row: Vec<Option<usize>> = (0..BINS).map(|i| level(map.free_energy[i * BINS + j])).collect();
        let mut i = 0;
        for run in row.chunk_by(|a, b| a == b) {
            if let Some(Some(level)) = run.first() {
                let (x, y) = (LEFT + CELL * i as f64, TOP + CELL * (BINS - 1 - j) as f64);
                svg.rect(x, y, CELL * run.len() as f64, CELL, &colour(*level));
            }
            i += run.len();
        }
    }
    for level in 0..LEVELS {
        let height = SIDE / LEVELS as f64;
        // Each shade reaches below the next one, for their edges are no whole pixels.
        let y = TOP + SIDE - height * (level + 1) as f64;
        svg.rect(BAR, y, 18.0, height + if level == 0 { 0.0 } else { 1.0 }, &colour(level));
    }
    svg.close_cells();
    let at = |phi: f64, psi: f64| (LEFT + (phi + 180.0) * CELL / BIN_DEGREES, TOP + (180.0 - psi) * CELL / BIN_DEGREES);
    for basin in &BASINS {
        let stretches = if basin.psi.0 < basin.psi.1 { vec![basin.psi] } else { vec![(basin.psi.0, 180.0), (-180.0, basin.psi.1)] };
        for &(low, high) in &stretches {
            let ((x0, y1), (x1, y0)) = (at(basin.phi.0, low), at(basin.phi.1, high));
            svg.frame(x0, y0, x1 - x0, y1 - y0, "#7f7f7f", "4 4");
        }
        let (x, y) = at(basin.phi.0, stretches[0].1);
        svg.text_on_map((x + 6.0, y + 17.0), Font { bold: true, ..LABEL }, basin.name);
    }
    svg.frame(LEFT, TOP, SIDE, SIDE, INK, "none");
    for k in -3..=3 {
        let angle = 60.0 * f64::from(k);
        let ((x, _), (_, y)) = (at(angle, 0.0), at(0.0, angle));
        svg.line((x, TOP + SIDE), (x, TOP + SIDE + 5.0), INK);
        svg.text((x, TOP + SIDE + 20.0), Anchor::Middle, TICK, &number(angle, 0));
        svg.line((LEFT - 5.0, y), (LEFT, y), INK);
        svg.text((LEFT - 9.0, y + 4.0), Anchor::End, TICK, &number(angle, 0));
    }
    svg.text((LEFT + SIDE / 2.0, TOP + SIDE + 46.0), Anchor::Middle, LABEL, "φ / °");
    svg.text_upwards((24.0, TOP + SIDE / 2.0), LABEL, "ψ / °");
    svg.frame(BAR, TOP, 18.0, SIDE, INK, "none");
    for &f in &ticks(0.0, end, 6).0 {
        let y = TOP + SIDE * (1.0 - f / end);
        svg.line((BAR + 18.0, y), (BAR + 23.0, y), INK);
        svg.text((BAR + 28.0, y + 4.0), Anchor::Start, TICK, &number(f, if end < 10.0 { 1 } else { 0 }));
    }
    svg.text_upwards((BAR + 72.0, TOP + SIDE / 2.0), LABEL, "free energy / kJ/mol");
    svg.finish()
}

/// Colours from low to high free energy: dark blue over green to pale yellow, evenly spaced in lightness, so that they
/// also print in grey and suit colour-blind readers.
const STOPS: [[f64; 3]; 7] = [
    [24.0, 24.0, 84.0],
    [36.0, 62.0, 122.0],
    [33.0, 104.0, 141.0],
    [32.0, 145.0, 140.0],
    [84.0, 185.0, 119.0],
    [166.0, 217.0, 94.0],
    [247.0, 241.0, 150.0],
];

pub(super) fn colour(level: usize) -> String {
    let x = level as f64 / (LEVELS - 1) as f64 * (STOPS.len() - 1) as f64;
    let i = (x as usize).min(STOPS.len() - 2);
    let mixed = [0, 1, 2].map(|c| (STOPS[i][c] + (x - i as f64) * (STOPS[i + 1][c] - STOPS[i][c])).round() as u8);
    format!("#{:02x}{:02x}{:02x}", mixed[0], mixed[1], mixed[2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::{AtomName, Noise, Purpose};

    fn system() -> System {
        let mut s = System::particles("dipeptide", 5, 12.0);
        let names = [("ACE", 1, "C"), ("ALA", 2, "N"), ("ALA", 2, "CA"), ("ALA", 2, "C"), ("NME", 3, "N")];
        s.names = names.map(|(r, id, a)| AtomName { atom: a.into(), residue: r.into(), residue_id: id, chain: String::new() }).to_vec();
        s
    }

    /// C–N–CA–C–N with the given torsions, bonds of 1 and right angles.
    fn shaped(phi: f64, psi: f64) -> Vec<f64> {
        use nalgebra::{Rotation3, Unit, Vector3};
        let (n, ca) = (Vector3::zeros(), Vector3::new(0.0, 0.0, 1.0));
        let before = Vector3::new(1.0, 0.0, 0.0);
        let c = ca + Vector3::new(phi.cos(), phi.sin(), 0.0);
        let axis = Unit::new_normalize(c - ca);
        // At ψ = 0 the last atom points back along the first bond of the four.
        let after = c + Rotation3::from_axis_angle(&axis, psi) * (n - ca);
        [before, n, ca, c, after].iter().flat_map(|p| [p.x, p.y, p.z]).collect()
    }

    fn filled(replicas: usize, frames: usize) -> FreeEnergyAccumulator {
        let mut a = FreeEnergyAccumulator::for_system(&system(), replicas).unwrap();
        fill(&mut a, frames, 0..replicas);
        a
    }

    fn fill(a: &mut FreeEnergyAccumulator, frames: usize, replicas: std::ops::Range<usize>) {
        for i in 0..frames {
            for r in replicas.clone() {
                let z = Noise::new(1).normals(i as u32, r as u32, 0, Purpose::Bootstrap);
                let (phi, psi) = if z[2] > 0.4 { (-70.0, -35.0) } else { (-100.0, 140.0) };
                a.add(i as u64, r, &shaped((phi + 25.0 * z[0]).to_radians(), (psi + 25.0 * z[1]).to_radians()));
            }
        }
    }

    #[test]
    fn angles_are_put_where_they_belong() {
        for (phi, psi) in [(-60.0, -45.0), (-120.0, 140.0), (57.0, 47.0f64)] {
            let mut a = FreeEnergyAccumulator::for_system(&system(), 1).unwrap();
            a.add(0, 0, &shaped(f64::to_radians(phi), f64::to_radians(psi)));
            let total = a.maps[0].total();
            let k = total.iter().position(|&c| c == 1).unwrap();
            assert!((bin_centre(k / BINS) - phi).abs() <= 2.5 && (bin_centre(k % BINS) - psi).abs() <= 2.5, "{phi} {psi}");
        }
        assert!(FreeEnergyAccumulator::for_system(&System::particles("argon", 3, 40.0), 1).is_none());
    }

    #[test]
    fn map_fits_the_terminal() {
        let report = filled(16, 500).report(300.0, true).unwrap();
        println!("{}", report.text);
        for line in report.text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(report.text.contains('█') && report.text.contains("αR") && report.text.contains("8000 samples"));
        let plain = filled(16, 500).report(300.0, false).unwrap();
        println!("{}", plain.text);
        assert!(plain.text.is_ascii());
        assert!(plain.text.lines().all(|l| l.len() <= 80));
        assert_eq!(plain.files, report.files);
        let names: Vec<&str> = report.files.iter().map(|f| f.0.as_str()).collect();
        assert_eq!(names, ["free-energy.svg", "free-energy.csv", "free-energy-profiles.svg"]);
        assert_eq!(report.files[1].1.lines().count(), 1 + BINS * BINS);
        if let Some(directory) = std::env::var_os("SCOREFIELD_SAVE_PLOTS") {
            for (name, content) in &report.files {
                std::fs::write(std::path::Path::new(&directory).join(name), content).unwrap();
            }
        }
    }

    #[test]
    fn state_goes_round() {
        for replicas in [1, 3, 16] {
            let whole = filled(replicas, 700);
            // Half the run, a checkpoint, and the rest elsewhere: the same counts, hence the same bytes.
            let mut resumed = FreeEnergyAccumulator::for_system(&system(), replicas).unwrap();
            let half = filled(replicas, 350);
            resumed.restore(&half.state()).unwrap();
            assert_eq!(resumed.state(), half.state());
            for i in 350..700 {
                for r in 0..replicas {
                    let z = Noise::new(1).normals(i as u32, r as u32, 0, Purpose::Bootstrap);
                    let (phi, psi) = if z[2] > 0.4 { (-70.0, -35.0) } else { (-100.0, 140.0) };
                    resumed.add(i as u64, r, &shaped((phi + 25.0 * z[0]).to_radians(), (psi + 25.0 * z[1]).to_radians()));
                }
            }
            assert_eq!(resumed.report(300.0, true), whole.report(300.0, true));
        }
    }

    #[test]
    fn parts_are_the_whole() {
        for (replicas, frames) in [(2, 700), (3, 32), (20, 50)] {
            let whole = filled(replicas, frames);
            let mut joined = FreeEnergyAccumulator::for_system(&system(), replicas).unwrap();
            for part in [0..1, 1..replicas] {
                let mut counts = FreeEnergyAccumulator::for_system(&system(), replicas).unwrap();
                fill(&mut counts, frames, part);
                joined.join(&counts.state()).unwrap();
            }
            assert_eq!(joined.state(), whole.state());
            assert!(joined.join(&filled(replicas + 1, 1).state()).is_err());
        }
    }

    #[test]
    fn foreign_counts_are_refused() {
        let state = filled(3, 20).state();
        let mut other = FreeEnergyAccumulator::for_system(&system(), 4).unwrap();
        assert!(other.restore(&state).is_err());
        let mut same = FreeEnergyAccumulator::for_system(&system(), 3).unwrap();
        for bad in [&state[..3], &state[..state.len() - 1], &[][..]] {
            assert!(same.restore(bad).is_err());
        }
        let mut far = state.clone();
        far[6] = u64::MAX;
        assert!(same.restore(&far).is_err());
        assert!(same.report(300.0, true).is_none());
    }

    #[test]
    fn blocks_of_time_stay_between_half_and_all() {
        let a = filled(1, 1000);
        assert_eq!(a.block_length, 64);
        let used = a.maps[0].counts().chunks(BINS * BINS).filter(|b| b.iter().sum::<u64>() > 0).count();
        assert_eq!(used, 16);
        assert!(a.maps[0].populations()[0].standard_error.is_finite());
    }
}
