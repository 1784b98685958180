//! The C interface from C: the header compiled, its layout beside ours, its example run, its promises kept. Needs a C compiler;
//! without one these tests skip and say so.

mod domains;
mod lammps;

use scorefield_c as sf;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

/// This package's directory.
fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo put the library that belongs to this test.
fn libraries() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(deps.join("libscorefield_c.so").exists(), "{} has no libscorefield_c.so", deps.display());
    deps
}

fn available(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: there is no `{program}`");
    }
    found
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}\n{}\n{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// Compiles a C file with our header and library, warnings being errors, and runs it.
fn compile_and_run(source: &Path, arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    let libraries = libraries();
    run(Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-O1", "-pthread"])
        .arg(source)
        .arg("-I")
        .arg(here().join("include"))
        .arg("-L")
        .arg(&libraries)
        .arg(format!("-Wl,-rpath,{}", libraries.display()))
        .args(["-lscorefield_c", "-lm", "-o"])
        .arg(&program));
    // Cargo's library path may lead to a library of an earlier build.
    run(Command::new(&program).args(arguments).env_remove("LD_LIBRARY_PATH"))
}

#[test]
fn the_example_runs() {
    if !available("cc") {
        return;
    }
    let said = compile_and_run(&here().join("examples/evaluate.c"), &["1000"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("\"name\":\"lennard-jones\"") && lines[0].contains("\"atoms\":2"), "{said}");
    // 0.0103 eV in kJ/mol; the slope at σ is 24 ε/σ.
    let epsilon = 0.0103 * 96.48533212331002;
    let numbers = |line: &str| -> Vec<f64> { line.split([' ', ',']).filter_map(|w| w.parse().ok()).collect() };
    let (touching, minimum) = (numbers(lines[1]), numbers(lines[2]));
    assert!(touching[0].abs() < 1e-9 && (touching[1] / (24.0 * epsilon / 0.3405) - 1.0).abs() < 1e-9, "{said}");
    assert!((minimum[0] / -epsilon - 1.0).abs() < 1e-9 && minimum[1].abs() < 1e-6, "{said}");
    assert!(lines[3].ends_with("microseconds per call"), "{said}");
}

#[test]
fn promises_of_the_header_are_kept() {
    if !available("cc") {
        return;
    }
    let said = compile_and_run(&here().join("tests/conformance.c"), &[]);
    macro_rules! layout {
        ($($c:literal $rust:ty { $($field:ident)* })*) => {
            [$(format!("{} {}", $c, size_of::<$rust>()),
               $(format!("{}.{} {}", $c, stringify!($field), offset_of!($rust, $field)),)*)*]
        };
    }
    let ours = layout! {
        "scorefield_batch" sf::Batch { structures positions cells }
        "scorefield_results" sf::BatchResults { forces energy virial atom_energy energy_deviation force_deviation }
        "scorefield_domain" sf::Domain {
            owned atoms positions types neighbour_counts neighbours neighbour_mask reserved forward reverse context
        }
        "scorefield_domain_results" sf::DomainResults { forces atom_energy energy virial }
    };
    assert_eq!(said.lines().collect::<Vec<_>>(), ours);
}

/// Every function of the header is in the library with as many arguments, and the other way round.
#[test]
fn header_and_source_name_the_same_functions() {
    let header = std::fs::read_to_string(here().join("include/scorefield.h")).unwrap();
    let without_comments = |text: &str| -> String {
        text.split("/*").enumerate().map(|(i, part)| if i == 0 { part } else { part.split_once("*/").unwrap().1 }).collect()
    };
    let arguments = |list: &str| list.split(',').filter(|a| !["", "void"].contains(&a.trim())).count();
    let mut declared: Vec<(String, usize)> = without_comments(&header)
        .split(';')
        .filter_map(|d| {
            let (before, after) = d.split_once('(')?;
            let name = before.rsplit([' ', '*', '\n']).next()?.to_owned();
            name.starts_with("scorefield_").then(|| (name, arguments(after.trim_end_matches(')'))))
        })
        .collect();
    let sources = ["src/lib.rs", "src/local.rs"].map(|f| std::fs::read_to_string(here().join(f)).unwrap()).concat();
    let mut defined: Vec<(String, usize)> = sources
        .split("extern \"C\" fn ")
        .skip(1)
        .filter_map(|f| {
            let (name, rest) = f.split_once('(')?;
            name.starts_with("scorefield_").then(|| (name.to_owned(), arguments(rest.split_once(')').unwrap().0)))
        })
        .collect();
    declared.sort();
    defined.sort();
    assert!(defined.len() >= 9);
    assert_eq!(declared, defined);
    assert!(header.contains(&format!("#define SCOREFIELD_ABI_VERSION {}\n", sf::ABI_VERSION)));
}

#[test]
fn the_header_is_cpp_too() {
    if !available("c++") {
        return;
    }
    run(Command::new("c++")
        .args(["-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++"])
        .arg(here().join("include/scorefield.h")));
}
