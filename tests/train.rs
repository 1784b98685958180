//! Training from outside: whatever interrupts it and however many threads it has, the same bytes come out; what is wrong
//! is said.

use crate::support::{error, fail, finish, run, scorefield, succeed};
use scorefield_models::scoremd::Model;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::tempdir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A recipe of seconds: two networks, the second with the residual.
const RECIPE: &str = r#"
variant = "both"

[[experts]]
body = { kind = "mlp", dimension = 2, hidden = [16, 16] }
head = "score"
range = { start = 0.3, end = 1.0 }

[[experts]]
body = { kind = "mlp", dimension = 2, hidden = [24, 24] }
head = "potential"
range = { start = 0.0, end = 0.3 }

[data]
temperature = 23

[data.simulate]
model = "muller-brown:mass=0.5"
replicas = 20
dt = 0.005
friction = 1.0
equilibration = 500
every = 20
frames = 1000

[train]
steps = 300
batch = 64
shares = [1, 2]
fokker-planck-fraction = 0.5

[output]
log-every = 20
validate-every = 50
checkpoint-every = 40
"#;

fn recipe(folder: &Path, change: impl Fn(String) -> String) -> String {
    let path = folder.join("recipe.toml");
    std::fs::write(&path, change(RECIPE.to_owned())).unwrap();
    text(&path).to_owned()
}

/// Parameters and counters of two trainings are the same bytes; their headers name different directories.
fn assert_same_training(a: &Path, b: &Path) {
    let read = |p: &Path| scorefield_models::train::StateFile::from_bytes(p, &std::fs::read(p.join("state.safetensors")).unwrap()).unwrap();
    let (one, two) = (read(a), read(b));
    assert!(one.arrays == two.arrays, "{} and {} differ", a.display(), b.display());
    let counters = |s: &str| serde_json::from_str::<serde_json::Value>(s).unwrap()["now"].clone();
    assert_eq!(counters(&one.header), counters(&two.header));
    let model = |p: &Path| Model { command: String::new(), ..Model::read(&p.join("model.safetensors")).unwrap() };
    assert!(model(a) == model(b));
    let rows = |p: &Path| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(p.join("metrics.jsonl")).unwrap();
        let without_speed = |line: &str| {
            let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
            row["rows_per_second"].take();
            row
        };
        text.lines().map(without_speed).collect()
    };
    assert_eq!(rows(a), rows(b));
}

#[test]
fn threads_and_interruptions_change_no_bit() {
    let dir = tempdir().unwrap();
    let recipe = recipe(dir.path(), |r| r);
    for dtype in ["f32", "f64"] {
        let whole = dir.path().join(format!("whole-{dtype}"));
        let printed = succeed(&["train", &recipe, "--output", text(&whole), "--threads", "1", "--dtype", dtype, "--quiet"]);
        assert!(printed.contains("300 steps") && printed.contains("model.safetensors"), "{printed}");
        let threads = dir.path().join(format!("threads-{dtype}"));
        succeed(&["train", &recipe, "--output", text(&threads), "--threads", "3", "--dtype", dtype, "--quiet"]);
        assert_same_training(&whole, &threads);
        // Killed without a warning, again and again.
        let parts = dir.path().join(format!("parts-{dtype}"));
        let mut random = 7u64;
        let mut kills = 0;
        let begin = Instant::now();
        while kills < 4 && begin.elapsed() < Duration::from_secs(120) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let resumes = parts.join("state.safetensors").exists();
            let mut command = match resumes {
                true => scorefield(&["train", "--resume", text(&parts), "--quiet"]),
                false => scorefield(&["train", &recipe, "--output", text(&parts), "--dtype", dtype, "--quiet", "--overwrite"]),
            };
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(20 + (random >> 33) % 400));
            if child.try_wait().unwrap().is_none() {
                let _ = child.kill();
                kills += 1;
            }
            child.wait().unwrap();
            if parts.join("summary.json").exists() {
                break;
            }
        }
        if parts.join("state.safetensors").exists() {
            succeed(&["train", "--resume", text(&parts), "--quiet"]);
        } else {
            succeed(&["train", &recipe, "--output", text(&parts), "--dtype", dtype, "--quiet", "--overwrite"]);
        }
        assert_same_training(&whole, &parts);
    }
    let out = dir.path().join("whole-f32");
    for file in ["loss.svg", "summary.json", "recipe.toml"] {
        assert!(out.join(file).exists(), "{file}");
    }
    let model = Model::read(&out.join("model.safetensors")).unwrap();
    assert_eq!((model.dimension(), model.temperature, model.masses.as_slice()), (2, 23.0, &[0.5][..]));
    assert_eq!((model.start_frames.len(), model.training_range.len()), (2 * 128, 2 * 6));
    assert!(model.log_z.is_some() && model.command.contains("train") && model.parameters.len() == 2);
    // Sampled data lie within the surface's basins.
    assert!(model.start_frames.chunks(2).all(|x| x[0] > -2.5 && x[0] < 1.8 && x[1] > -1.2 && x[1] < 2.8));
}

/// A network of five beads of any amino acid, trained with the residual.
const TRANSFERABLE: &str = r#"
variant = "fokker-planck"

[[experts]]
body = { kind = "graph-transformer", beads = 5, width = 16, layers = 1, features = { kind = "residue" } }
head = "potential"
range = { start = 0.0, end = 1.0 }

[data]
systems = "beads"
temperature = "310 K"

[train]
steps = 6
batch = 16
held-out = 8

[output]
log-every = 2
start-frames = 3
"#;

/// Beads of one amino acid, as a PDB and `frames` shaken frames beside it.
fn write_beads(folder: &Path, residue: &str, frames: u32) {
    let beads = [
        ("N", "N", -1.45, 0.0, 0.0),
        ("CA", "C", 0.0, 0.0, 0.0),
        ("C", "C", 0.5, 1.4, 0.0),
        ("O", "O", 1.7, 1.5, 0.0),
        ("CB", "C", 0.5, -0.8, 1.2),
    ];
    let atom = |(i, b): (usize, &(&str, &str, f64, f64, f64))| {
        format!("ATOM  {:5}  {:<3} {residue} A   1    {:8.3}{:8.3}{:8.3}  1.00  0.00          {:>2}\n", i + 1, b.0, b.2, b.3, b.4, b.1)
    };
    let pdb: String = beads.iter().enumerate().map(atom).collect();
    std::fs::write(folder.join(format!("{residue}.pdb")), pdb + "END\n").unwrap();
    let shaken = |f: u32| -> String {
        let shake = |k: u32| 0.1 * f64::from((f * 31 + k * 17 + residue.len() as u32) % 13) / 13.0;
        let line = |(i, b): (usize, &(&str, &str, f64, f64, f64))| {
            let k = 3 * i as u32;
            format!("{} {:.4} {:.4} {:.4}\n", b.1, b.2 + shake(k), b.3 + shake(k + 1), b.4 + shake(k + 2))
        };
        format!("5\n\n{}", beads.iter().enumerate().map(line).collect::<String>())
    };
    std::fs::write(folder.join(format!("{residue}.xyz")), (0..frames).map(shaken).collect::<String>()).unwrap();
}

#[test]
fn one_model_learns_several_molecules() {
    let dir = tempdir().unwrap();
    let beads = dir.path().join("beads");
    std::fs::create_dir(&beads).unwrap();
    for residue in ["ALA", "SER", "TRP"] {
        write_beads(&beads, residue, 20);
    }
    let recipe = dir.path().join("recipe.toml");
    std::fs::write(&recipe, TRANSFERABLE).unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    succeed(&["train", text(&recipe), "--output", text(&one), "--threads", "1", "--quiet"]);
    succeed(&["train", text(&recipe), "--output", text(&two), "--threads", "3", "--quiet"]);
    assert_same_training(&one, &two);
    let file = one.join("model.safetensors");
    let model = Model::read(&file).unwrap();
    assert_eq!(model.systems.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["ALA", "SER", "TRP"]);
    assert_eq!((model.start_frames.len(), model.types.as_slice()), (3 * 3 * 15, &[7, 6, 6, 8, 6][..]));
    // Trained molecules by name, others by their structure.
    let drawn = dir.path().join("drawn.dcd");
    let draw = |more: &[&str]| {
        let base = ["sample", "-n", "20", "--steps", "10", "-o", text(&drawn), "--quiet"];
        succeed(&[&base[..], more].concat());
        std::fs::read(&drawn).unwrap()
    };
    let named = format!("scoremd:weights={},system=SER", file.display());
    let serine = beads.join("SER.pdb");
    let by_structure = draw(&["--model", text(&file), "--structure", text(&serine)]);
    assert!(draw(&["--model", &named]) == by_structure);
    assert!(std::fs::read_to_string(drawn.with_extension("pdb")).unwrap().contains("SER"));
    write_beads(&beads, "VAL", 20);
    let valine = beads.join("VAL.pdb");
    assert!(draw(&["--model", text(&file), "--structure", text(&valine)]) != by_structure);
    let out = dir.path().join("run");
    let run = ["simulate", "--steps", "20", "--replicas", "2", "--quiet", "--overwrite", "--out", text(&out), "--model"];
    let free = ["--temperature", "310 K"];
    succeed(&[&run[..], &[&named]].concat());
    succeed(&[&run[..], &[text(&file), text(&valine)], &free].concat());
    // What is missing, or is another molecule.
    fail(&[&run[..], &[text(&file)]].concat(), 2, &["STRUCTURE"]);
    fail(&["sample", "--model", text(&file), "-o", "x.dcd"], 2, &["--structure", "system=NAME", "ALA, SER, TRP"]);
    let unknown = format!("scoremd:weights={},system=GLU", file.display());
    fail(&[&run[..], &[&unknown]].concat(), 2, &["ALA, SER, TRP"]);
    let other = dir.path().join("x.pdb");
    std::fs::write(&other, std::fs::read_to_string(&valine).unwrap().replace("VAL", "XYZ")).unwrap();
    fail(&[&run[..], &[text(&file), text(&other)], &free].concat(), 1, &["residue `XYZ`"]);
    let refused = |from: &str, to: &str, parts: &[&str]| {
        std::fs::write(&recipe, TRANSFERABLE.replace(from, to)).unwrap();
        fail(&["train", text(&recipe), "--output", text(&dir.path().join("no"))], 2, parts);
    };
    refused("systems = \"beads\"", "trajectory = \"beads/ALA.xyz\"\ntopology = \"beads/ALA.pdb\"", &["systems = \"FOLDER\""]);
    refused("{ kind = \"residue\" }", "{ kind = \"index\" }", &["systems are for transferable networks"]);
    refused("310 K\"", "310 K\"\ntopology = \"beads/ALA.pdb\"", &["topology and systems"]);
    std::fs::remove_file(beads.join("TRP.xyz")).unwrap();
    refused("310 K", "310 K", &["no trajectory TRP.*"]);
}

#[cfg(unix)]
#[test]
fn signals_leave_a_state_and_say_how_to_go_on() {
    let dir = tempdir().unwrap();
    let recipe = recipe(dir.path(), |r| r.replace("steps = 300", "steps = 300000"));
    let out = dir.path().join("run");
    let child = scorefield(&["train", &recipe, "--output", text(&out)]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while !out.join("state.safetensors").exists() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    finish(std::process::Command::new("kill").args(["-s", "TERM", &child.id().to_string()]));
    let output = child.wait_with_output().unwrap();
    let message = error(&output);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("interrupted at step") && message.contains(&format!("scorefield train --resume {}", text(&out))), "{message}");
    assert!(Model::read(&out.join("model.safetensors")).is_ok());
}

#[test]
fn what_would_be_another_training_is_refused() {
    let dir = tempdir().unwrap();
    let path = recipe(dir.path(), |r| r);
    let out = dir.path().join("run");
    succeed(&["train", &path, "--output", text(&out), "--steps", "30", "--quiet"]);
    fail(&["train", &path, "--output", text(&out)], 2, &["holds a training already", "--resume", "--overwrite"]);
    fail(&["train", "--resume", text(&out), "--steps", "60"], 2, &["another training"]);
    fail(&["train", "--resume", text(&out), "--seed", "60"], 2, &["--seed"]);
    fail(&["train", "--resume", text(&out), "--dtype", "f64"], 2, &["--dtype f64", "f32"]);
    fail(&["train", "--resume", text(dir.path())], 1, &["no state of training"]);
    // Going on with what is done changes nothing.
    let before = std::fs::read(out.join("model.safetensors")).unwrap();
    succeed(&["train", "--resume", text(&out), "--quiet"]);
    assert!(before == std::fs::read(out.join("model.safetensors")).unwrap());
    std::fs::write(out.join("state.safetensors"), b"nonsense").unwrap();
    fail(&["train", "--resume", text(&out)], 1, &["state.safetensors", "no whole state"]);
}

#[test]
fn training_starts_from_a_trained_model() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    succeed(&["train", &recipe(dir.path(), |r| r), "--output", text(&at("first")), "--quiet"]);
    let rest = |r: String| {
        r.replace("steps = 300", "steps = 3\nlearning-rate = 1e-12\nfinal-learning-rate = 0.0\nstart-from = \"first/model.safetensors\"")
    };
    succeed(&["train", &recipe(dir.path(), rest), "--output", text(&at("second")), "--quiet"]);
    succeed(&["train", &recipe(dir.path(), |r| r.replace("steps = 300", "steps = 3")), "--output", text(&at("random")), "--quiet"]);
    let [first, second] = ["first", "second"].map(|run| Model::read(&at(run).join("model.safetensors")).unwrap());
    let all = |m: &Model| [m.parameters.concat(), m.log_z.as_ref().map(|(_, z)| z.clone()).unwrap()].concat();
    // Rounding of the average aside.
    let most = all(&first).iter().zip(all(&second)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(
        most < 1e-6 && first.parameters.concat() != Model::read(&at("random").join("model.safetensors")).unwrap().parameters.concat(),
        "{most}"
    );
    // Also where it goes on.
    succeed(&["train", "--resume", text(&at("second")), "--quiet"]);
    for (from, to, parts) in [
        ("hidden = [16, 16]", "hidden = [16, 8]", ["start-from", "other networks"]),
        ("[data]\n", "[data]\nscale = 7.0\n", ["start-from", "scale"]),
        ("first/model", "none/model", ["none", "model.safetensors"]),
    ] {
        let path = recipe(dir.path(), |r| rest(r).replace(from, to));
        let output = run(&["train", &path, "--output", text(&at("no"))]);
        assert!(!output.status.success() && parts.iter().all(|p| error(&output).contains(p)), "{}", error(&output));
    }
}

#[test]
fn mistakes_in_recipes_are_explained() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/data/alanine-dipeptide/alanine-dipeptide.pdb");
    for (from, to, code, parts) in [
        ("steps = 300", "step = 300", 2, vec!["did you mean `steps`?", "recipe.toml, line"]),
        ("variant = \"both\"", "preset = \"aldp\"", 2, vec!["`experts`"]),
        ("temperature = 23", "", 2, vec!["temperature is missing"]),
        ("temperature = 23", "temperature = \"300 K\"", 2, vec!["reduced units"]),
        ("dimension = 2, hidden = [16, 16]", "dimension = 3, hidden = [16, 16]", 2, vec!["different sizes"]),
        ("shares = [1, 2]", "shares = [1]", 2, vec!["shares"]),
        ("head = \"potential\"", "head = \"score\"", 2, vec!["no energy"]),
        ("steps = 300", "steps = 300\nepochs = 3", 2, vec!["steps and epochs"]),
        ("steps = 300", "steps = 300\nforce-weight = 1.0", 2, vec!["forces"]),
        ("steps = 300", "steps = 300\nheld-out = 1000", 2, vec!["held-out = 1000"]),
        ("frames = 1000", "frames = 5", 2, vec!["5 frames", "16 or more"]),
        ("muller-brown:mass=0.5", "lj", 2, vec!["toy of one particle"]),
        ("[data]\n", "[data]\ntrajectory = \"a.npy\"\n", 2, vec!["one of them must go"]),
        ("fokker-planck-fraction = 0.5", "fokker-planck-fraction = 2.0", 1, vec!["fraction"]),
        ("steps = 300", "steps = 300\nmidpoints = [0.5, 0.5]", 1, vec!["midpoint"]),
    ] {
        let path = recipe(dir.path(), |r| {
            assert!(r.contains(from), "{from}");
            r.replacen(from, to, 1)
        });
        fail(&["train", &path, "--output", text(&out)], code, &parts);
        assert!(!out.join("state.safetensors").exists(), "{to}");
    }
    // A preset of five beads, but a molecule of 22.
    let path = dir.path().join("beads.toml");
    let toml = format!("preset = \"alanine-dipeptide\"\n[data]\ntrajectory = \"{data}\"\ntemperature = \"300 K\"\n");
    std::fs::write(&path, toml).unwrap();
    fail(&["train", text(&path), "--output", text(&out)], 2, &["frames", "16 or more"]);
    for (preset, part) in [("alanine", "known are"), ("dipeptides", "transferable"), ("alanine-dipeptide-mixture", "variant = \"mixture\"")]
    {
        std::fs::write(&path, format!("preset = \"{preset}\"\n")).unwrap();
        fail(&["train", text(&path), "--output", text(&out)], 2, &[part]);
    }
    let output = run(&["train"]);
    assert_eq!(output.status.code(), Some(2), "{}", error(&output));
}

#[test]
fn a_loss_that_is_not_finite_stops_with_a_reason() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    // A rate that no network survives.
    let path = recipe(dir.path(), |r| {
        r.replace("steps = 300", "steps = 300\nlearning-rate = 1e18\nfinal-learning-rate = 1e18\nnot-finite = \"stop\"")
    });
    fail(&["train", &path, "--output", text(&out)], 1, &["is not finite", "learning rate", "smaller learning-rate"]);
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("is not finite"), "{metrics}");
    let path = recipe(dir.path(), |r| r.replace("steps = 300", "steps = 300\nlearning-rate = 1e18\nfinal-learning-rate = 1e18"));
    fail(&["train", &path, "--output", text(&out), "--overwrite"], 1, &["going back to step 0", "after 5 returns"]);
}

#[test]
fn recipes_that_come_along_can_be_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/data/recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            scorefield::config::Recipe::read(&path).unwrap();
            count += 1;
        }
    }
    assert!(count >= 7);
}

/// A pseudo-force field of two molecules.
const FIELD: &str = r#"
[network]
features = 16
layers = 1
radial = 60
cutoff = 15.0

[data]
trajectory = "molecules.xyz"

[train]
steps = 6
batch = 8
held-out = 2

[output]
log-every = 2
validate-every = 3
"#;

fn field(folder: &Path) -> String {
    let water = "3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n";
    let ammonia = "4\n\nN 0 0 0.1\nH 0.94 0 -0.27\nH -0.47 0.81 -0.27\nH -0.47 -0.81 -0.27\n";
    std::fs::write(folder.join("molecules.xyz"), [water, ammonia].concat().repeat(6)).unwrap();
    let path = folder.join("field.toml");
    std::fs::write(&path, format!("architecture = \"painn\"\n{FIELD}")).unwrap();
    text(&path).to_owned()
}

#[test]
fn pseudo_force_fields_are_trained_and_used_on_devices() {
    let dir = tempdir().unwrap();
    let recipe = field(dir.path());
    let at = |name: &str| text(&dir.path().join(name)).to_owned();
    succeed(&["train", &recipe, "--output", &at("here"), "--quiet"]);
    succeed(&["train", &recipe, "--device", "emulated", "--output", &at("there"), "--quiet"]);
    let loss = |name: &str| -> f64 {
        let summary = std::fs::read_to_string(dir.path().join(name).join("summary.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&summary).unwrap()["validation_loss"].as_f64().unwrap()
    };
    assert!((loss("here") / loss("there") - 1.0).abs() < 1e-3, "{} {}", loss("here"), loss("there"));
    // A training stays where it was begun.
    fail(&["train", "--resume", &at("there"), "--device", "cpu"], 2, &["begun on emulated"]);
    succeed(&["train", "--resume", &at("there"), "--quiet"]);
    // Other networks have no such kernels.
    let other = self::recipe(dir.path(), |r| r);
    fail(&["train", &other, "--device", "emulated", "--output", &at("x")], 2, &["only pseudo-force fields"]);
    // Samples: the same molecules here and there, but for rounding.
    let model = at("there/model.safetensors");
    for (device, out) in [("cpu", "a.xyz"), ("emulated", "b.xyz")] {
        let out = at(out);
        let sampler = ["--sampler", "sdd", "--steps", "4", "--device", device, "--dtype", "f64", "--seed", "1"];
        succeed(&[&["sample", "--model", &model, "--formula", "H2O", "--count", "3", "-o", &out], &sampler[..]].concat());
    }
    let numbers = |name: &str| -> Vec<f64> {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        text.split_whitespace().filter_map(|w| w.parse().ok()).collect()
    };
    let (a, b) = (numbers("a.xyz"), numbers("b.xyz"));
    assert!(a.len() >= 27 && a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
}

#[test]
fn conformer_models_are_trained_on_devices() {
    let dir = tempdir().unwrap();
    field(dir.path());
    let at = |name: &str| text(&dir.path().join(name)).to_owned();
    let recipe = "preset = \"ditmc-pe3-small\"\n[transformer]\nvariant = \"pe3\"\nblocks = 1\nheads = 2\nhead-width = 16\nconditioner-layers = 1\n\
                  vocabulary = \"qm9\"\n[data]\ntrajectory = \"molecules.xyz\"\n[train]\nsteps = 3\nbatch = 3\nheld-out = 1\n";
    std::fs::write(dir.path().join("ditmc.toml"), recipe).unwrap();
    let loss = |device: &str| -> f64 {
        let out = at(&format!("ditmc-{device}"));
        succeed(&["train", &at("ditmc.toml"), "--device", device, "--output", &out, "--quiet"]);
        let summary = std::fs::read_to_string(Path::new(&out).join("summary.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&summary).unwrap()["validation_loss"].as_f64().unwrap()
    };
    let (here, there) = (loss("cpu"), loss("emulated"));
    assert!((here / there - 1.0).abs() < 1e-4, "{here} {there}");
}
