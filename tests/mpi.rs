//! `--mpi`: a run in several processes is the run in one, byte for byte. With `--features mpi` and an `mpirun`; without, only that
//! the program says so.

#[cfg(not(feature = "mpi"))]
#[test]
fn programs_without_mpi_say_so() {
    crate::support::fail(&["exchange", "--mpi", "--steps", "10"], 2, &["built without MPI", "--features mpi"]);
    eprintln!("skipped: runs under mpirun, which need `cargo test --workspace --features mpi`");
}

#[cfg(feature = "mpi")]
mod processes {
    use crate::support::{assert_same, error, fail, finish, succeed};
    use std::path::Path;
    use std::process::{Command, Output};
    use tempfile::tempdir;

    /// The program in so many processes of one thread each.
    fn mpirun(processes: usize, args: &[&str]) -> Output {
        let count = processes.to_string();
        let mut command = Command::new("mpirun");
        // Open MPI refuses to run as root, or more processes than cores, unless told to. MPICH ignores these.
        command.envs([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ]);
        command.env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
        command.args(["-n", &count, env!("CARGO_BIN_EXE_scorefield")]).args(args).args(["--mpi", "--threads", "1"]);
        finish(&mut command)
    }

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    /// `base` in one process, and in several with a resume in another number of them.
    fn same_in_any_number(base: &[&str]) {
        let dir = tempdir().unwrap();
        let with = |out: &Path, steps: &str| [base, &["--steps", steps, "--out", text(out), "--seed", "7"]].concat().join("\u{1}");
        let split = |line: &str| line.split('\u{1}').map(str::to_owned).collect::<Vec<_>>();
        let run = |processes: usize, line: &str| {
            let args = split(line);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = mpirun(processes, &args);
            assert!(output.status.success(), "{}", error(&output));
            output
        };
        let one = dir.path().join("one");
        let args = split(&with(&one, "200"));
        succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
        for (first, then) in [(1, 1), (2, 3), (3, 1)] {
            let many = dir.path().join(format!("{first}-{then}"));
            run(first, &with(&many, "120"));
            let resumed = run(then, &[base[0], "--resume", text(&many), "--steps", "200"].join("\u{1}"));
            assert_same(&one, &many);
            // One process speaks for all.
            let said = String::from_utf8_lossy(&resumed.stdout);
            assert_eq!(said.matches("steps/s").count(), 1, "{said}");
        }
    }

    #[test]
    fn replica_exchange() {
        same_in_any_number(&["exchange", "--count", "3", "--copies", "2", "--exchange-every", "20", "--log-every", "40"]);
    }

    #[test]
    fn simulations_with_restraints() {
        let restraint = "harmonic:cv=phi,at=-60 deg,stiffness=50 kJ/mol/rad^2";
        let cv = "phi=dihedral 5 7 9 15";
        same_in_any_number(&["simulate", "--model", "mm", "--replicas", "7", "--cv", cv, "--bias", restraint, "--colvar-every", "50"]);
        same_in_any_number(&["simulate", "--model", "muller-brown", "--replicas", "33", "--integrator", "mala", "--log-every", "20"]);
    }

    #[test]
    fn what_goes_wrong_ends_all_processes() {
        let dir = tempdir().unwrap();
        let out = dir.path().join("run");
        let mut base = vec!["simulate", "--model", "mm", "--steps", "200", "--out", text(&out)];
        let refused = |args: &[&str], parts: &[&str]| {
            let output = mpirun(2, args);
            let said = error(&output);
            assert!(!output.status.success() && parts.iter().all(|p| said.contains(p)), "{said}");
            assert_eq!(said.matches("error:").count(), 1, "{said}");
        };
        base.extend(["--replicas", "1"]);
        refused(&base, &["2 processes cannot share out 1 replica"]);
        base[7..].copy_from_slice(&["--replicas", "4"]);
        let hills = ["--cv", "d=distance 1 6", "--bias", "metadynamics:cv=d,height=1 kJ/mol,width=0.2 A,every=50,factor=8,from=0 A,to=9 A"];
        refused(&[&base[..], &hills, &["--overwrite"]].concat(), &["--mpi has no hills"]);
        // A replica of the second process explodes.
        refused(&[&base[..], &["--dt", "40 fs", "--overwrite", "--relax=false"]].concat(), &["is not finite at step"]);
        assert!(dir.path().join("run").read_dir().unwrap().any(|f| f.unwrap().file_name().to_string_lossy().starts_with("last-good")));
        fail(&["simulate", "--model", "mm", "--steps", "20", "--out", text(&out)], 2, &["holds a run already"]);
    }
}
