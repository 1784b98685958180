//! Replicas do not depend on how they are shared out, and a run in its steady state does not allocate.

use crate::support::{allocations, assert_same, contents, succeed};
use scorefield_integrators::dynamics::{Dynamics, DynamicsSpec, draw_velocities};
use scorefield_integrators::{Batch, DType, Ensemble, Guard, Noise, Quantity, State};
use scorefield_models::parse_spec;
use std::sync::Arc;
use tempfile::tempdir;

#[test]
fn files_do_not_depend_on_threads() {
    let dir = tempdir().unwrap();
    for command in ["simulate", "exchange"] {
        let size = if command == "simulate" { ["--model", "mm", "--replicas", "21"] } else { ["--model", "mm", "--copies", "3"] };
        let one = dir.path().join(format!("{command}-1"));
        for threads in ["1", "2", "5"] {
            let out = dir.path().join(format!("{command}-{threads}"));
            let args = [command, "--steps", "300", "--log-every", "100", "--trajectory-every", "100"];
            succeed(&[&args[..], &size[..], &["--threads", threads, "--out", out.to_str().unwrap()]].concat());
            assert_same(&one, &out);
        }
    }
}

#[test]
fn replicas_do_not_depend_on_their_number() {
    let dir = tempdir().unwrap();
    let files = |replicas: &str| {
        let out = dir.path().join(replicas);
        let args = [
            "simulate",
            "--model",
            "mm",
            "--steps",
            "200",
            "--trajectory-every",
            "50",
            "--trajectory-layout",
            "per-replica",
            "--replicas",
            replicas,
        ];
        succeed(&[&args[..], &["--out", out.to_str().unwrap()]].concat());
        contents(&out)
    };
    let (few, many) = (files("3"), files("37"));
    let mut compared = 0;
    for (name, bytes) in few.iter().filter(|f| f.0.starts_with("trajectory")) {
        assert!(*bytes == many[name], "{name} differs");
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[test]
fn steady_state_does_not_allocate() {
    for threads in [1, 3] {
        let built = parse_spec("muller-brown").unwrap().build().unwrap();
        let toy = built.toy.unwrap();
        let batch = Batch::uniform(Arc::new(toy.system), 100, 0).unwrap();
        let mut state = State::at_rest(&batch, &toy.positions.repeat(100), DType::F32).unwrap();
        state.kt.fill(20.0);
        draw_velocities(&batch, &mut state, Noise::new(1), false);
        let spec = DynamicsSpec::Baoab { dt: Quantity::bare(0.005), friction: Quantity::bare(1.0) };
        let units = built.provider.capabilities().units;
        let dynamics = Dynamics::new(&spec, units, false).unwrap();
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
        let mut ensemble =
            Ensemble::new(batch, &state, &*built.provider, &dynamics, Noise::new(1), pool.clone(), Guard::default()).unwrap();
        let count = || pool.broadcast(|_| allocations()).into_iter().sum::<u64>();
        // From inside the pool, as the run loop does it.
        let mut advance = || {
            pool.install(|| {
                for _ in 0..200 {
                    ensemble.run(250).unwrap();
                }
            });
        };
        advance();
        let before = count();
        advance();
        // Counting and entering the pool cost a few themselves; 200 blocks of 250 steps none.
        let spent = count() - before;
        assert!(spent < 30, "{spent} allocations in 200 blocks on {threads} threads");
    }
}
