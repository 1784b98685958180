//! Molecules from noise, from outside: `sample`, `denoise`, `design` and `shape` with the exact pseudo-forces of a few
//! isomers.

use super::support::{fail, succeed};
use std::path::Path;

const ORACLE: &str = "gpff-oracle:tests/data/gpff/c4h7no2.xyz";
const ISOMERS: &str = "tests/data/gpff/c4h7no2.xyz";
const PHYSICAL: &str = "lj:sigma=3.405A,epsilon=0.0103eV";

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Positions (Å) of every structure of an XYZ file, and the elements of the first.
fn read(path: &Path) -> (Vec<String>, Vec<Vec<f64>>) {
    let content = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = content.lines().collect();
    let (mut elements, mut frames, mut at) = (Vec::new(), Vec::new(), 0);
    while at < lines.len() {
        let n: usize = lines[at].trim().parse().unwrap();
        let rows: Vec<Vec<&str>> = lines[at + 2..at + 2 + n].iter().map(|l| l.split_whitespace().collect()).collect();
        if elements.is_empty() {
            elements = rows.iter().map(|r| r[0].to_owned()).collect();
        }
        frames.push(rows.iter().flat_map(|r| r[1..4].iter().map(|x| x.parse::<f64>().unwrap())).collect());
        at += 2 + n;
    }
    (elements, frames)
}

/// Distance (Å, root mean square) of a structure from the nearest isomer, atoms in the same order of elements.
fn distance(x: &[f64]) -> f64 {
    let (_, isomers) = read(Path::new(env!("CARGO_MANIFEST_DIR")).join(ISOMERS).as_path());
    let square = |y: &Vec<f64>| x.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let best = isomers.iter().map(square).fold(f64::INFINITY, f64::min);
    (best / (x.len() / 3) as f64).sqrt()
}

#[test]
fn molecules_are_generated_by_every_sampler() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.xyz");
    let table = folder.path().join("table.csv");
    for (sampler, evaluations) in [
        (&["--sampler", "dd"][..], None),
        (&["--steps", "24"][..], Some("24.0 (24, 24)")),
        (&["--sampler", "ancestral", "--steps", "12"][..], Some("12.0 (12, 12)")),
        (&["--sampler", "heun", "--steps", "8"][..], Some("15.0 (15, 15)")),
        (&["--sampler", "stochastic-heun", "--steps", "16", "--adaptive"][..], None),
        (&["--steps", "24", "--shape", "rod"][..], Some("24.0 (24, 24)")),
    ] {
        let base = ["sample", "--model", ORACLE, "--formula", "C4NO2H7", "--count", "12", "--quiet"];
        let printed = succeed(&[&base[..], sampler, &["-o", &text(&out), "--table", &text(&table)]].concat());
        assert!(["not converged", "valid ", "molecules/s"].iter().all(|part| printed.contains(part)), "{printed}");
        if let Some(evaluations) = evaluations {
            assert!(printed.contains(evaluations), "{printed}");
        }
        let (elements, frames) = read(&out);
        assert_eq!((elements.join(""), frames.len()), ("CCCCNOOHHHHHHH".to_owned(), 12));
        for frame in &frames {
            assert!(distance(frame) < 0.05, "{sampler:?}: {}", distance(frame));
        }
        assert_eq!(std::fs::read_to_string(&table).unwrap().lines().count(), 13);
    }
}

#[test]
fn molecules_depend_on_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let base = ["sample", "--model", ORACLE, "--compositions", ISOMERS, "-n", "9", "--sampler", "ancestral", "--steps", "8", "--quiet"];
        succeed(&[&base[..], &["--shape", "predicted", "-o", &text(&out)], more].concat());
        std::fs::read(out).unwrap()
    };
    let one = make("1.xyz", &["--threads", "1"]);
    assert!(one == make("2.xyz", &["--threads", "3"]), "threads change molecules");
    assert!(one != make("3.xyz", &["--seed", "1"]), "the seed does not");
}

#[test]
fn scaffolds_stay_and_the_rest_grows() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, out) = (folder.path().join("ring.xyz"), folder.path().join("grown.xyz"));
    let (elements, isomers) = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(ISOMERS));
    let write = |atoms: std::ops::Range<usize>| {
        let mut content = format!("{}\n\n", atoms.len());
        for i in atoms {
            let x = &isomers[2][3 * i..3 * i + 3];
            content += &format!("{} {} {} {}\n", elements[i], x[0], x[1], x[2]);
        }
        std::fs::write(&ring, content).unwrap();
    };
    // The file's elements are in the order of the isomers, so that added hydrogens come last as they do there.
    write(0..12);
    let grow = ["design", &text(&ring), "--model", ORACLE, "--add", "H2", "--at", "0,0,0", "--blob", "1.5 A", "-n", "5"];
    succeed(&[&grow[..], &["--steps", "32", "--quiet", "-o", &text(&out)]].concat());
    let (_, grown) = read(&out);
    assert_eq!(grown.len(), 5);
    for x in &grown {
        assert!(x[..36].iter().zip(&isomers[2]).all(|(a, b)| (a - b).abs() < 1e-9), "the scaffold moved");
        assert!(distance(x) < 0.05, "{}", distance(x));
    }
    // Atoms taken off are where new ones begin; a file per candidate.
    write(0..14);
    let again = ["design", &text(&ring), "--model", ORACLE, "--add", "H2", "--remove", "12-13", "-n", "3", "--numbered", "--quiet"];
    let printed = succeed(&[&again[..], &["--covariance", "0.1,0.1,0.2,0,0.05,0", "--steps", "16", "-o", &text(&out)]].concat());
    assert!(printed.contains("16.0 (16, 16)"), "{printed}");
    for k in 1..=3 {
        assert_eq!(read(&folder.path().join(format!("grown-{k}.xyz"))).1.len(), 1);
    }
    let keep = ["sample", "--model", ORACLE, "--scaffold", &text(&ring), "--frozen", "0-6", "-n", "4", "--steps", "16", "--quiet"];
    succeed(&[&keep[..], &["-o", &text(&out)]].concat());
    for x in read(&out).1 {
        assert!(x[..21].iter().zip(&isomers[2]).all(|(a, b)| (a - b).abs() < 1e-9));
    }
}

#[test]
fn noisy_structures_are_denoised_and_relaxed() {
    let folder = tempfile::tempdir().unwrap();
    let (out, path) = (folder.path().join("clean.xyz"), folder.path().join("path.xyz"));
    let base = ["denoise", ISOMERS, "--model", ORACLE, "--frames", "0:10", "--noise", "0.2 A", "--quiet"];
    let direct = succeed(&[&base[..], &["-o", &text(&out), "--trajectory", &text(&path), "--trajectory-of", "3"]].concat());
    let (_, clean) = read(&out);
    assert!(clean.len() == 10 && clean.iter().all(|x| distance(x) < 0.01), "{direct}");
    let (_, steps) = read(&path);
    // The path begins at noise, ends at the very result, and has a frame per evaluation.
    assert!(distance(&steps[0]) > 0.1);
    assert_eq!(steps.last(), clean.get(3));
    let value = |line: &str, word: &str| -> f64 {
        let rest = &line[line.find(word).unwrap() + word.len()..];
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    // σ̂ leaves out rotations, which this model knows: 36 of 39 degrees of freedom, and noise on ten molecules.
    let start = value(&direct, "σ̂");
    assert!((start - 0.2 * (39.0f64 / 36.0).sqrt()).abs() < 0.03, "{direct}");
    assert!(direct.contains("in the end"), "{direct}");
    let heun = ["--sampler", "heun", "--adaptive", "--steps", "16", "--freeze", "0-2", "-o"];
    succeed(&[&base[..], &heun, &[&text(&out)]].concat());
    let noisy = text(&out);
    let relaxed = succeed(&["relax", &noisy, "--model", ORACLE, "--quiet", "--out", &text(&path)]);
    assert!(relaxed.contains("10 of 10 converged") && relaxed.contains("before"), "{relaxed}");
}

#[test]
fn shapes_are_measured_fitted_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let (fit, plot, table) = (folder.path().join("fit.json"), folder.path().join("npr.svg"), folder.path().join("npr.csv"));
    let printed = succeed(&["shape", ISOMERS, "--quiet", "--fit", &text(&fit), "--plot", &text(&plot), "--table", &text(&table)]);
    assert!(printed.starts_with("64 molecules: mean NPR (0."), "{printed}");
    assert_eq!(std::fs::read_to_string(&table).unwrap().lines().count(), 65);
    assert!(std::fs::read_to_string(&plot).unwrap().contains("sphere</text>"));
    let out = folder.path().join("out.xyz");
    let shaped = |steps: &str, shape: &str| {
        let base = ["sample", "--model", ORACLE, "--formula", "C4NO2H7", "-n", "6", "--quiet", "--steps", steps, "--shape", shape];
        succeed(&[&base[..], &["-o", &text(&out)]].concat());
    };
    shaped("8", &format!("predicted:{}", text(&fit)));
    fail(&["sample", "--model", ORACLE, "--formula", "C4NO2H7", "--shape", "cube", "-o", &text(&out)], 2, &["cube", "rod, sphere, disc"]);
    let nowhere = format!("predicted:{}", text(&folder.path().join("none.json")));
    fail(&["sample", "--model", ORACLE, "--formula", "C4NO2H7", "--shape", &nowhere, "-o", &text(&out)], 1, &["none.json"]);
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out.xyz"));
    let sample = |more: &[&str], parts: &[&str]| fail(&[&["sample", "--model", ORACLE, "-o", &out], more].concat(), 2, parts);
    sample(&[], &["--formula", "--compositions", "--scaffold"]);
    sample(&["--formula", "C4Qq2"], &["`Qq`", "C4Qq2\n    ^"]);
    sample(&["--formula", "c4"], &["begins no element"]);
    sample(&["--formula", "C4(OH)2"], &["without brackets"]);
    sample(&["--formula", "C4H7FO2"], &["F", "knows this element"]);
    sample(&["--formula", "CH4", "--compositions", ISOMERS], &["exclude each other"]);
    sample(&["--formula", "C4NO2H7", "--count", "0"], &["at least one"]);
    sample(&["--formula", "C4NO2H7", "--sampler", "em"], &["em", "stochastic-heun"]);
    sample(&["--formula", "C4NO2H7", "--sampler", "heun", "--sigma", "-3 A"], &["sigma-max = -3 A", "not positive"]);
    sample(&["--formula", "C4NO2H7", "--sampler", "heun", "--sigma", "3"], &["no unit"]);
    sample(&["--formula", "C4NO2H7", "--sampler", "heun", "--eta", "1 A"], &["--eta", "--sampler sdd"]);
    sample(&["--formula", "C4NO2H7", "--adaptive"], &["no schedule"]);
    sample(&["--formula", "C4NO2H7", "--denoise"], &["--denoise"]);
    sample(&["--formula", "C4NO2H7", "--frozen", "0"], &["--scaffold"]);
    sample(&["--scaffold", ISOMERS], &["--frozen", "design"]);
    sample(&["--scaffold", ISOMERS, "--frozen", "20"], &["atom 20"]);
    sample(&["--scaffold", ISOMERS, "--frozen", "0-13"], &["all 14 atoms"]);
    sample(&["--scaffold", ISOMERS, "--frozen", "0", "--blob", "0 A"], &["--blob 0 A"]);
    let physical = ["sample", "--model", PHYSICAL, "--formula", "CH4", "-o", &out];
    fail(&physical, 2, &["physical", "relax"]);
    let nowhere = text(&folder.path().join("none").join("out.xyz"));
    fail(&["sample", "--model", ORACLE, "--formula", "C4NO2H7", "-o", &nowhere], 2, &["no directory"]);
    // A wrong composition is found before the work.
    fail(&["sample", "--model", ORACLE, "--formula", "C4NO2H8", "-o", &out, "--count", "3"], 1, &["every molecule failed", "C4N1O2H7"]);
    let denoise = |more: &[&str], parts: &[&str]| fail(&[&["denoise", ISOMERS, "--model", ORACLE], more].concat(), 2, parts);
    denoise(&["--sampler", "heun"], &["--sigma", "--adaptive"]);
    denoise(&["--noise", "-1 A"], &["--noise -1 A"]);
    denoise(&["--freeze", "99"], &["atom 99"]);
    denoise(&["--trajectory", &out, "--trajectory-of", "64"], &["64 structures"]);
    fail(&["denoise", ISOMERS, "--model", PHYSICAL], 2, &["pseudo-forces"]);
    let design = |more: &[&str], parts: &[&str]| fail(&[&["design", ISOMERS, "--model", ORACLE, "-o", &out], more].concat(), 2, parts);
    design(&[], &["--add"]);
    design(&["--add", "C2x"], &["--add", "C2x"]);
    design(&["--add", "H"], &["--at"]);
    design(&["--add", "H", "--at", "0,1"], &["3 numbers"]);
    design(&["--add", "H", "--at", "0,0,0", "--covariance", "1,1,-1,0,0,0"], &["positive definite"]);
    design(&["--add", "H", "--at", "0,0,0", "--covariance", "1,1,1,0,0,0", "--blob", "1 A"], &["keep one"]);
    design(&["--add", "H", "--remove", "0-13"], &["all atoms"]);
}

#[test]
fn the_embedded_field_generates_and_repairs_molecules() {
    let folder = tempfile::tempdir().unwrap();
    let (made, bent, repaired) = (folder.path().join("made.sdf"), folder.path().join("bent.sdf"), folder.path().join("repaired.sdf"));
    let printed = succeed(&["sample", "-n", "60", "--steps", "64", "--seed", "3", "-o", &text(&made), "--quiet"]);
    let sdf = std::fs::read_to_string(&made).unwrap();
    assert_eq!(sdf.matches("$$$$").count(), 60);
    let valid = |printed: &str| -> f64 {
        let line = printed.lines().find(|l| l.trim_start().starts_with("valid ")).unwrap_or_else(|| panic!("{printed}"));
        line.split(|c: char| !c.is_ascii_digit()).find_map(|w| w.parse::<f64>().ok()).unwrap()
    };
    assert!(valid(&printed) >= 60.0, "{printed}");
    let noisy = ["denoise", &text(&made), "--noise", "0.1 A", "--seed", "1", "--max-evaluations", "1", "--quiet"];
    succeed(&[&noisy[..], &["-o", &text(&bent)]].concat());
    let printed = succeed(&["denoise", &text(&bent), "-o", &text(&repaired), "--quiet"]);
    assert!(printed.contains("noise level"), "{printed}");
}
