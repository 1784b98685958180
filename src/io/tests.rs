//! Formats together: files of other programs, cut and corrupt files, messages.

use super::*;
use std::fs;
use std::panic::catch_unwind;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/files").join(name)
}

fn peptide() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/alanine-dipeptide/alanine-dipeptide.pdb")
}

/// Trajectories of two frames made by MDTraj and ASE, and how exactly they hold positions (nm).
const TWO: &[(&str, f64)] = &[
    ("two.dcd", 1e-6),
    ("two.xtc", 6e-4),
    ("two.trr", 1e-6),
    ("two.nc", 1e-6),
    ("two.lammpstrj", 6e-5),
    ("two.gro", 6e-4),
    ("two.pdb", 6e-5),
    ("two.cif", 1e-5),
    ("two.extxyz", 1e-6),
    ("one.lmp", 1e-6),
];

fn needs_topology(name: &str) -> bool {
    [".dcd", ".xtc", ".trr", ".nc", "two.lammpstrj"].iter().any(|end| name.ends_with(end))
}

fn options(name: &str) -> ReadOptions {
    ReadOptions { topology: needs_topology(name).then(peptide), ..ReadOptions::default() }
}

fn message(path: &Path, options: &ReadOptions) -> String {
    match read_frames(path, options).and_then(|mut f| f.find_map(|f| f.err()).map_or(Ok(()), Err)) {
        Ok(()) => panic!("{}: no error", path.display()),
        Err(e) => e.to_string(),
    }
}

/// Writes `text` to a file of this name and returns what reading it says.
fn message_of(name: &str, text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    message(&path, &ReadOptions::default())
}

#[test]
fn reads_files_of_other_programs() {
    let expected: Vec<Vec<f64>> = serde_json::from_str(&fs::read_to_string(fixture("positions.json")).unwrap()).unwrap();
    for &(name, tolerance) in TWO {
        let mut frames = read_frames(fixture(name), &options(name)).unwrap();
        let count = frames.count_in_file().unwrap();
        let frames: Vec<Frame> = frames.map(|f| f.unwrap()).collect();
        assert_eq!(frames.len(), if name == "one.lmp" { 1 } else { 2 }, "{name}");
        assert_eq!(count, frames.len(), "{name}");
        for (k, frame) in frames.iter().enumerate() {
            let worst = frame.positions.iter().zip(&expected[k]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < tolerance && frame.len() == 22, "{name}: off by {worst} nm");
            let (lengths, angles) = frame::cell_lengths_angles(&frame.cell.unwrap());
            for a in 0..3 {
                assert!((lengths[a] - [2.0, 2.2, 2.4][a]).abs() < 1e-4, "{name}: {lengths:?}");
                assert!((angles[a] - [90.0, 80.0, 70.0][a]).abs() < 2e-2, "{name}: {angles:?}");
            }
            assert_eq!(frame.system.types[..7], [1, 6, 1, 1, 6, 8, 7], "{name}");
            assert!(Arc::ptr_eq(&frame.system, &frames[0].system), "{name}: equal topologies are one");
            if matches!(name, "two.xtc" | "two.trr" | "two.nc" | "two.gro") {
                assert_eq!(frame.time, Some(0.5 * k as f64), "{name}");
            }
            if !matches!(name, "two.gro" | "two.extxyz" | "one.lmp") {
                assert_eq!(frame.system.bonds.len(), 21, "{name}");
            }
        }
    }
    let frame = read_structure(fixture("two.extxyz")).unwrap();
    assert!((frame.energy.unwrap() + 3.25 * 96.48533212331).abs() < 1e-9);
    assert!((frame.forces.unwrap()[65] - 0.65 * 964.8533212331).abs() < 1e-5);
}

/// Bytes of a file, cut and damaged in many ways: an error or frames, never a panic; a cut never gives more frames than before.
#[test]
fn survives_cut_and_corrupt_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut seed = 7u64;
    let mut random = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    let names = TWO.iter().map(|t| t.0).chain(["molecules.sdf", "molecules.mol2", "old-style.pdb"]);
    for name in names {
        let bytes = fs::read(fixture(name)).unwrap();
        let path = dir.path().join(name);
        let options = ReadOptions { topology: options(name).topology, ..ReadOptions::default() };
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let result = catch_unwind(|| {
                let mut whole = 0;
                match read_frames(&path, &options) {
                    Ok(frames) => {
                        for frame in frames {
                            match frame {
                                Ok(_) => whole += 1,
                                Err(e) => return (whole, Some(e.to_string())),
                            }
                        }
                        (whole, None)
                    }
                    Err(e) => (whole, Some(e.to_string())),
                }
            });
            result.unwrap_or_else(|_| panic!("{name} panics"))
        };
        let (all, error) = read(&bytes);
        assert_eq!(error, None, "{name}");
        for k in 0..60 {
            let cut = k * bytes.len() / 60;
            let (whole, error) = read(&bytes[..cut]);
            assert!(whole <= all, "{name} cut at {cut}");
            // A text that is cut between two records may be a shorter file; binary files are never silent.
            let may_be_silent = !matches!(name, "two.dcd" | "two.xtc" | "two.trr" | "two.nc" | "one.lmp");
            assert!(error.is_some() || (may_be_silent && whole > 0) || cut_between_frames(&bytes, cut), "{name} cut at {cut} is silent");
            if let Some(error) = error {
                assert!(error.contains(name), "{name}: {error}");
            }
        }
        for k in 0..150 {
            let mut bad = bytes.clone();
            for _ in 0..1 + random(3) {
                let at = random(if k % 2 == 0 { bad.len() } else { bad.len().min(300) });
                bad[at] = [0, 0xff, b'9', b'-', random(256) as u8][random(5)];
            }
            read(&bad);
        }
    }
}

/// Text cut at any byte: an error, a warning, or whole frames as they were; never silently less of a structure.
#[test]
fn cut_text_is_never_silently_shorter() {
    let dir = tempfile::tempdir().unwrap();
    let text = TWO.iter().map(|t| t.0).filter(|n| !matches!(*n, "two.dcd" | "two.xtc" | "two.trr" | "two.nc"));
    for name in text.chain(["molecules.sdf", "molecules.mol2", "old-style.pdb"]) {
        let bytes = fs::read(fixture(name)).unwrap();
        let path = dir.path().join(name);
        let options = options(name);
        let whole: Vec<Frame> = read_frames(fixture(name), &options).unwrap().map(|f| f.unwrap()).collect();
        let (mut errors, mut warned, mut silent) = (0, 0, 0);
        // At and beside every line end, and at every seventh byte.
        for cut in (1..bytes.len()).filter(|&c| c % 7 == 0 || bytes[c - 1..=c].contains(&b'\n')) {
            fs::write(&path, &bytes[..cut]).unwrap();
            warnings::GIVEN.take();
            match read_frames(&path, &options).and_then(|f| f.collect::<Result<Vec<_>>>()) {
                Err(e) => {
                    errors += 1;
                    assert!(e.to_string().contains(name), "{name} cut at {cut}: {e}");
                }
                Ok(_) if !warnings::GIVEN.take().is_empty() => warned += 1,
                Ok(frames) => {
                    silent += 1;
                    assert!(!frames.is_empty() && frames == whole[..frames.len()], "{name} cut at {cut} is silently another structure");
                }
            }
        }
        println!("{name}: {errors} errors, {warned} warnings, {silent} whole frames");
        // Cuts between frames, and of blank lines at the end.
        assert!(errors + warned > 9 * silent.max(1), "{name}: {silent} of {} cuts are silent", bytes.len());
    }
}

/// The one place where an XTC or TRR file can be cut without anyone seeing: it is a shorter file then.
fn cut_between_frames(bytes: &[u8], cut: usize) -> bool {
    bytes.get(cut..cut + 4) == bytes.get(..4) && cut > 0
}

#[test]
fn messages_name_file_place_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let none = ReadOptions::default();
    let has = |message: String, parts: &[&str]| {
        for part in parts {
            assert!(message.contains(part), "`{message}` lacks `{part}`");
        }
    };
    has(message(&dir.path().join("no.pdb"), &none), &["no.pdb", "cannot read"]);
    has(message(dir.path(), &none), &["directory"]);
    has(message_of("a.pdb", ""), &["a.pdb", "empty"]);
    has(message_of("a.what", "x"), &["a.what", "xyz, extxyz, dcd"]);
    has(message_of("a.dcd", "x"), &["a.dcd", "topology"]);
    has(message_of("a.xyz", "2\n\nC 0 0 0\nH 0 nan 1\n"), &["a.xyz", "frame 0", "coordinate y", "atom 2 (H)", "NaN"]);
    has(message_of("a.xyz", "1\n\nC 0 0 0\n2\n\nC 0 0 0\n"), &["frame 1", "1 of 2 atoms", "read frames 0:1"]);
    has(message_of("a.xyz", "1\n\nQ7 0 0 0\n"), &["atom 1", "Q7", "chemical symbol"]);
    has(message_of("a.xyz", "one\n"), &["line 1", "`one`"]);
    has(message_of("a.xyz", "1\n\nC 0 0 O\n"), &["line 3", "coordinate z", "`O`"]);
    has(message_of("a.xyz", "99999999999\n\nC 0 0 0\n"), &["99999999999 atoms"]);
    has(message_of("a.pdb", "REMARK nothing\nEND\n"), &["no ATOM"]);
    has(message_of("a.pdb", "MODEL        1\nATOM      1  C   LIG A   1       0.000   0.000   0.000\n"), &["ENDMDL"]);
    has(message_of("a.pdb", "ATOM      1  C   LIG A   1       0.000   0.0x0   0.000\nEND\n"), &["line 1", "coordinate y", "0.0x0"]);
    has(message_of("a.pdb", "HETATM    1  CA  LIG A   1       0.000   0.000   0.000\nEND\n"), &["C or Ca", "77-78"]);
    has(message_of("a.pdb", "ATOM      1  C   LIG A   1       0.0"), &["atom 1 is not whole"]);
    has(message_of("a.sdf", "x\n\n\n  0  0  0  0  0  0  0  0  0  0999 V3000\n"), &["V3000", "V2000"]);
    has(message_of("a.cif", "data_x\n"), &["_atom_site.type_symbol"]);
    has(message_of("a.gro", "x\n1\n    1ALA     CA    1   0.0.0   0.000   0.000\n1 1 1\n"), &["a.gro", "line 3"]);
    let wrong = ReadOptions { topology: Some(fixture("molecules.sdf")), ..ReadOptions::default() };
    for name in ["two.dcd", "two.xtc", "two.trr", "two.nc", "two.lammpstrj"] {
        has(message(&fixture(name), &wrong), &[name, "22 atoms", "ammonium has 5", "topology"]);
    }
    fs::write(dir.path().join("latin.pdb"), b"REMARK \xe4\n").unwrap();
    has(message(&dir.path().join("latin.pdb"), &none), &["UTF-8", "iconv"]);
}

#[test]
fn molecules_keep_charges_bonds_and_data() {
    let frames = |name: &str| read_frames(fixture(name), &ReadOptions::default()).unwrap().map(|f| f.unwrap()).collect::<Vec<_>>();
    let sdf = frames("molecules.sdf");
    assert_eq!(sdf.iter().map(|f| (f.system.name.as_str(), f.system.charge)).collect::<Vec<_>>(), [("ammonium", 1), ("hydroxide", -1)]);
    assert_eq!(sdf[0].system.bonds, [(0, 1), (0, 2), (0, 3), (0, 4)]);
    assert_eq!(sdf[0].properties["source"], "made by hand\nsecond line");
    assert_eq!(sdf[0].positions[3..6], [0.06, 0.06, 0.06]);
    let mol2 = frames("molecules.mol2");
    assert_eq!(
        mol2.iter().map(|f| (f.system.name.as_str(), f.system.charge)).collect::<Vec<_>>(),
        [("chloromethane", 0), ("hydronium", 1)]
    );
    assert_eq!(mol2[0].system.types, [6, 17, 1, 1, 1]);
    assert_eq!(mol2[1].system.bonds, [(0, 1), (0, 2), (0, 3)]);
}

#[test]
fn old_pdb_files_are_understood() {
    let frame = read_structure(fixture("old-style.pdb")).unwrap();
    let system = &frame.system;
    assert_eq!(system.types, [7, 6, 6, 8, 7, 6, 6, 8, 6, 8, 1, 8, 7, 20], "second alternate location left out, ion known");
    assert!((frame.positions[3] - 0.1458).abs() < 1e-12, "the first location stays");
    assert_eq!(frame.cell, Some([2.0, 0.0, 0.0, 0.0, 2.1, 0.0, 0.0, 0.0, 2.2]));
    // N-CA CA-C C-O, the peptide bond, the same in serine with its side chain and hydrogen, and CONECT.
    let expected = [(0, 1), (1, 2), (2, 3), (2, 4), (4, 5), (5, 6), (5, 8), (6, 7), (8, 9), (9, 10), (11, 12)];
    assert_eq!(system.bonds, expected);
    assert!(warnings::GIVEN.take().iter().any(|w| w.contains("alternate locations")));
    let disguised = ReadOptions { format: Some("PDB".into()), ..ReadOptions::default() };
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("old-style.pdb"), dir.path().join("structure")).unwrap();
    assert_eq!(read_frames(dir.path().join("structure"), &disguised).unwrap().count(), 1);
}

#[test]
fn ranges_and_selections() {
    let read = |range: &str, selection: Option<&str>| {
        let options = ReadOptions { range: range.parse()?, selection: selection.map(str::parse).transpose()?, ..options("two.dcd") };
        read_frames(fixture("two.dcd"), &options)?.collect::<Result<Vec<Frame>>>()
    };
    let all = read(":", None).unwrap();
    assert_eq!(read("-1", None).unwrap(), all[1..]);
    assert_eq!(read("::2", None).unwrap(), all[..1]);
    assert_eq!(read("1:9", None).unwrap(), all[1..]);
    assert!(read("5:", None).unwrap().is_empty());
    let some = read(":", Some("4-6,8")).unwrap();
    assert_eq!(some[1].positions[3..6], all[1].positions[15..18]);
    assert_eq!(some[0].system.types, [6, 8, 7, 6]);
    assert_eq!(some[0].system.bonds, [(0, 1), (0, 2), (2, 3)]);
    assert!(Arc::ptr_eq(&some[0].system, &some[1].system));
    assert!(read(":", Some("0-22")).is_err());
    if cfg!(feature = "chemfiles") {
        assert_eq!(read(":", Some("name CA")).unwrap()[0].system.names[0].residue, "ALA");
        assert_eq!(read(":", Some("not type H")).unwrap()[0].len(), 10);
        assert_eq!(read(":", Some("resid 1 to 2 and resname ALA")).unwrap()[0].len(), 10);
        assert!(read(":", Some("name XYZ")).unwrap_err().to_string().contains("none of the 22 atoms"));
        assert!(matches!(read(":", Some("name ==== ")), Err(IoError::Text { .. })));
        assert!(read(":", Some("bonds: all")).unwrap_err().to_string().contains("atoms, not pairs"));
    } else {
        assert!(read(":", Some("name CA")).unwrap_err().to_string().contains("feature"));
    }
}

#[test]
fn written_files_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let moving = |f: Frame| Frame { velocities: Some(f.positions.iter().map(|x| 0.3 - x).collect()), time: None, ..f };
    let frames: Vec<Frame> = read_frames(fixture("two.dcd"), &options("two.dcd")).unwrap().map(|f| moving(f.unwrap())).collect();
    let mut names = vec![
        ("a.xyz", 1e-8),
        ("a.extxyz", 1e-8),
        ("a.dcd", 1e-7),
        ("a.lammpstrj", 1e-8),
        ("a.pdb", 6e-5),
        ("a.cif", 6e-7),
        ("a.sdf", 6e-6),
    ];
    if cfg!(feature = "chemfiles") {
        names.extend([("a.mol2", 1e-6), ("a.gro", 6e-4), ("a.xtc", 6e-4), ("a.trr", 1e-6), ("a.nc", 1e-6), ("a.lmp", 1e-6)]);
    }
    for (name, tolerance) in names {
        let path = dir.path().join(name);
        let count = if name == "a.lmp" { 1 } else { 2 };
        write_frames(&path, None, &frames[..count]).unwrap();
        let read: Vec<Frame> = read_frames(&path, &options(name)).unwrap().map(|f| f.unwrap()).collect();
        assert_eq!(read.len(), count, "{name}");
        for (a, b) in read.iter().zip(&frames) {
            let worst = a.positions.iter().zip(&b.positions).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst <= tolerance, "{name}: off by {worst} nm");
            assert_eq!(a.system.types, b.system.types, "{name}");
            if name != "a.sdf" {
                let cells = a.cell.unwrap().into_iter().zip(b.cell.unwrap());
                assert!(cells.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-3, "{name}: {:?}", a.cell);
            }
            if matches!(name, "a.pdb" | "a.cif" | "a.sdf" | "a.mol2" | "a.lmp") {
                assert_eq!(a.system.bonds, b.system.bonds, "{name}");
            }
            if matches!(name, "a.pdb" | "a.cif") {
                assert_eq!(a.system.names, b.system.names, "{name}");
            }
            if matches!(name, "a.trr" | "a.nc" | "a.gro") {
                let pairs = a.velocities.as_ref().unwrap().iter().zip(b.velocities.as_ref().unwrap());
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(worst <= if name == "a.gro" { 6e-5 } else { 1e-6 }, "{name}: off by {worst} nm/ps");
            }
        }
        let leftovers = fs::read_dir(dir.path()).unwrap().filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
        assert_eq!(leftovers.count(), 0, "{name}");
    }
    let mut bad = frames[0].clone();
    bad.positions[4] = f64::INFINITY;
    let message = write_frames(dir.path().join("b.pdb"), None, &[bad]).unwrap_err().to_string();
    assert!(message.contains("coordinate y of atom 2 (CH3 of ACE 1) is inf"), "{message}");
    assert!(write_frames(dir.path().join("b.pdb"), None, &[]).is_err());
    assert!(!dir.path().join("b.pdb").exists());
    let mut far = frames[0].clone();
    far.positions[0] = 5000.0;
    assert!(write_frames(dir.path().join("b.pdb"), None, &[far]).unwrap_err().to_string().contains("columns"));
    let rotated = Frame { cell: Some([0.0, 2.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 2.0]), ..frames[0].clone() };
    for name in ["b.pdb", "b.dcd", "b.cif", "b.lammpstrj"] {
        assert!(write_frames(dir.path().join(name), None, std::slice::from_ref(&rotated)).unwrap_err().to_string().contains("rotated"));
    }
    write_frames(dir.path().join("b.extxyz"), None, std::slice::from_ref(&rotated)).unwrap();
    assert_eq!(read_structure(dir.path().join("b.extxyz")).unwrap().cell, rotated.cell);
}

#[test]
fn sdf_keeps_the_graph() {
    use scorefield_models::molecule::{Convention, Perceiver};
    let dir = tempfile::tempdir().unwrap();
    // Glycine as a zwitterion, methyl, and carbon monoxide, in Å.
    let zwitterion = "10\nglycine\nN -1.940 0.060 0.010\nC -0.520 -0.290 0.010\nC 0.420 0.920 0.010\nO 1.610 0.600 -0.010\n\
                      O -0.090 2.050 0.020\nH -2.100 1.080 0.010\nH -2.400 -0.340 0.840\nH -2.400 -0.350 -0.810\n\
                      H -0.330 -0.900 0.900\nH -0.330 -0.900 -0.880\n";
    let methyl = "4\nmethyl\nC 0 0 0\nH 1.09 0 0\nH -0.54 0.94 0\nH -0.54 -0.94 0\n";
    let input = dir.path().join("in.xyz");
    fs::write(&input, format!("{zwitterion}{methyl}2\ncarbon monoxide\nC 0 0 0\nO 1.13 0 0\n")).unwrap();
    let mut perceiver = Perceiver::new();
    let mut frames: Vec<Frame> = read_frames(&input, &options("in.xyz")).unwrap().map(|f| f.unwrap()).collect();
    for (frame, convention) in frames.iter_mut().zip([Convention::default(), Convention::without_charges(), Convention::default()]) {
        frame.perceive_bonds(&mut perceiver, convention).unwrap();
        frame.properties.insert("source".into(), "a test\n\n$$$$\nof two lines".into());
    }
    let charges: Vec<i8> = frames[0].graph.as_ref().unwrap().atoms().iter().map(|a| a.charge).collect();
    assert_eq!(charges.iter().filter(|q| **q != 0).copied().collect::<Vec<_>>(), [1, -1]);
    assert_eq!(frames[1].graph.as_ref().unwrap().radicals(), 1);
    let path = dir.path().join("out.sdf");
    write_frames(&path, None, &frames).unwrap();
    let read: Vec<Frame> = read_frames(&path, &options("out.sdf")).unwrap().map(|f| f.unwrap()).collect();
    assert_eq!(read.len(), 3);
    for (a, b) in read.iter().zip(&frames) {
        assert_eq!(a.graph, b.graph, "{}", b.system.name);
        assert_eq!(a.properties["source"], "a test\nof two lines");
        assert_eq!(a.system.charge, 0);
    }
    // Too many atoms; an atom far out.
    let mut far = frames[2].clone();
    far.positions[0] = 2e4;
    assert!(write_frames(&path, None, &[far]).unwrap_err().to_string().contains("columns"));
    let many = System::particles("many", 1000, 1.0);
    let many = Frame::new(std::sync::Arc::new(many), (0..3000).map(f64::from).collect());
    assert!(write_frames(&path, None, &[many]).unwrap_err().to_string().contains("999"));
}
