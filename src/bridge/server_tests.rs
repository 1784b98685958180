//! The server before clients that keep, stretch and break the protocol, and before our own driver.

use super::{Address, Driver, End, Forces, Remote, Structure};
use scorefield_integrators::units::{KJ_PER_HARTREE, NM_PER_BOHR};
use scorefield_integrators::{Batch, DType, ForceProvider, Input, Output, Result, State, System, Want};
use scorefield_models::{ProviderSpec, parse_spec};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Hartree per bohr² of the springs that clients here compute.
const K: f64 = 0.0625;

/// A server in a directory of its own.
fn server(more: &str) -> (TempDir, Remote) {
    let directory = tempfile::tempdir().unwrap();
    let text = format!("ipi:unix=s,prefix={}/,wait=5 s,timeout=5 s", directory.path().display());
    let ProviderSpec::Ipi(mut spec) = parse_spec(&text).unwrap() else { panic!() };
    for pair in more.split(',').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap();
        match key {
            "wait" => spec.wait = value.parse().unwrap(),
            "timeout" => spec.timeout = value.parse().unwrap(),
            "clients" => spec.clients = value.parse().unwrap(),
            "batch" => spec.batch = value.parse().unwrap(),
            "classic" => spec.classic = true,
            key => panic!("{key}"),
        }
    }
    let remote = Remote::open(&spec, true).unwrap();
    (directory, remote)
}

fn connect(directory: &TempDir) -> UnixStream {
    let stream = UnixStream::connect(directory.path().join("s")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn batch(replicas: usize) -> (Batch, State) {
    let batch = Batch::uniform(Arc::new(System::particles("pair", 2, 1.0)), replicas, 7).unwrap();
    let x: Vec<f64> = (0..6 * replicas).map(|k| 0.1 + 0.013 * k as f64).collect();
    let state = State::at_rest(&batch, &x, DType::F64).unwrap();
    (batch, state)
}

fn evaluate(remote: &mut Remote, replicas: usize) -> Result<Output> {
    let (batch, state) = batch(replicas);
    let want = Want { energy: true, virial: true, ..Want::FORCES };
    let mut out = Output::new(&batch, DType::F64, want);
    remote.prepare(&batch, DType::F64)?;
    let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want };
    remote.evaluate(&input, &mut out)?;
    Ok(out)
}

/// What springs give for [`batch`].
fn check(out: &Output, replicas: usize) {
    let (_, state) = batch(replicas);
    for (k, x) in state.positions().to_f64().iter().enumerate() {
        let force = -K * (x / NM_PER_BOHR) * KJ_PER_HARTREE / NM_PER_BOHR;
        assert!((out.forces.get(k) - force).abs() <= 1e-13 * force.abs(), "{k}: {} and {force}", out.forces.get(k));
    }
    for (b, e) in out.energy.iter().enumerate() {
        assert!((e - 0.25 * KJ_PER_HARTREE).abs() < 1e-9, "energy {b}: {e}");
    }
    // Clients here send the upper triangle alone.
    assert!(out.virial.iter().all(|v| v[1] == v[3] && v[2] == v[6] && v[5] == v[7] && v[1] != 0.0));
}

fn word(text: &str) -> Vec<u8> {
    format!("{text:<12}").into_bytes()
}

fn read(stream: &mut UnixStream, n: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).ok().map(|()| bytes)
}

fn integer(stream: &mut UnixStream) -> Option<i32> {
    Some(i32::from_le_bytes(read(stream, 4)?.try_into().unwrap()))
}

fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn doubles(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// FORCEREADY of springs at `x`.
fn answer(x: &[f64]) -> Vec<u8> {
    let forces: Vec<f64> = x.iter().map(|x| -K * x).collect();
    let virial = [1.0, 0.5, 0.25, 0.0, 1.0, 0.125, 0.0, 0.0, 1.0];
    let atoms = (x.len() / 3) as i32;
    [
        word("FORCEREADY"),
        doubles(&[0.25]),
        atoms.to_le_bytes().to_vec(),
        doubles(&forces),
        doubles(&virial),
        2i32.to_le_bytes().to_vec(),
        vec![b'{', b'}'],
    ]
    .concat()
}

/// What a scripted client does.
#[derive(Clone, Default)]
struct Manner {
    /// It asks for INIT before the first evaluation.
    needs_init: bool,
    /// It asks for INIT before every evaluation.
    forgets: bool,
    /// Bytes it sends at a time.
    pieces: Option<usize>,
    /// Bytes of the answer after which it hangs up.
    hangs_up: Option<usize>,
    /// What it says instead of its answer.
    says: Option<Vec<u8>>,
    /// It never answers.
    silent: bool,
}

/// Replica ids of the INITs that a client saw, its evaluations, and whether it was told EXIT.
type Seen = (Vec<i32>, usize, bool);

fn client(directory: &TempDir, manner: Manner) -> JoinHandle<Seen> {
    let mut s = connect(directory);
    std::thread::spawn(move || {
        let mut seen: Seen = (Vec::new(), 0, false);
        let mut ready = !(manner.needs_init || manner.forgets);
        let mut x = Vec::new();
        while let Some(header) = read(&mut s, 12) {
            match header.trim_ascii_end() {
                b"STATUS" => s
                    .write_all(&word(if !x.is_empty() {
                        "HAVEDATA"
                    } else if ready {
                        "READY"
                    } else {
                        "NEEDINIT"
                    }))
                    .unwrap(),
                b"INIT" => {
                    assert!(!ready || manner.needs_init);
                    let Some(id) = integer(&mut s) else { break };
                    seen.0.push(id);
                    let n = integer(&mut s).unwrap();
                    read(&mut s, n as usize).unwrap();
                    ready = true;
                }
                b"POSDATA" => {
                    assert!(ready);
                    let cell = numbers(&read(&mut s, 144).unwrap());
                    assert!((cell[0] * NM_PER_BOHR - 20.0).abs() < 1e-9 && (cell[0] * cell[9] - 1.0).abs() < 1e-12 && cell[1] == 0.0);
                    let n = integer(&mut s).unwrap() as usize;
                    x = numbers(&read(&mut s, 24 * n).unwrap());
                }
                b"GETFORCE" => {
                    let bytes = manner.says.clone().unwrap_or_else(|| answer(&x));
                    x.clear();
                    seen.1 += 1;
                    ready = !manner.forgets;
                    if manner.silent {
                        continue;
                    }
                    let bytes = &bytes[..manner.hangs_up.unwrap_or(bytes.len())];
                    for piece in bytes.chunks(manner.pieces.unwrap_or(bytes.len()).max(1)) {
                        if s.write_all(piece).is_err() {
                            return seen;
                        }
                        if manner.pieces.is_some() {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                    if manner.hangs_up.is_some() {
                        return seen;
                    }
                }
                b"EXIT" => {
                    seen.2 = true;
                    break;
                }
                other => panic!("{}", other.escape_ascii()),
            }
        }
        seen
    })
}

#[test]
fn every_kind_of_client_gives_the_same() {
    let mut first = None;
    for options in ["", "classic=true"] {
        for manner in [
            Manner::default(),
            Manner { needs_init: true, ..Manner::default() },
            Manner { forgets: true, ..Manner::default() },
            Manner { pieces: Some(7), ..Manner::default() },
        ] {
            let (directory, mut remote) = server(options);
            let joined = client(&directory, manner.clone());
            for _ in 0..4 {
                let out = evaluate(&mut remote, 2).unwrap();
                check(&out, 2);
                assert_eq!(*first.get_or_insert(out.clone()), out);
            }
            drop(remote);
            let (inits, evaluations, exit) = joined.join().unwrap();
            assert_eq!((evaluations, exit), (8, true));
            match (manner.needs_init, manner.forgets) {
                (true, _) => assert_eq!(inits, [7]),
                (_, true) => assert_eq!(inits, [7, 8].repeat(4)),
                _ => assert!(inits.is_empty()),
            }
        }
    }
}

#[test]
fn a_hang_up_at_any_byte_costs_nothing_but_the_client() {
    let (directory, mut remote) = server("");
    let good = client(&directory, Manner::default());
    check(&evaluate(&mut remote, 2).unwrap(), 2);
    let whole = answer(&[0.0; 6]).len();
    for cut in 0..whole {
        let bad = client(&directory, Manner { hangs_up: Some(cut), needs_init: true, ..Manner::default() });
        // Until the server has let it in, the good client does all the work.
        let start = Instant::now();
        while !bad.is_finished() {
            check(&evaluate(&mut remote, 2).unwrap(), 2);
            assert!(start.elapsed() < Duration::from_secs(10), "byte {cut}");
        }
        assert_eq!(bad.join().unwrap().1, 1);
    }
    check(&evaluate(&mut remote, 2).unwrap(), 2);
    drop(remote);
    assert!(good.join().unwrap().2);
}

#[test]
fn what_clients_must_not_send_is_said_with_their_names() {
    let mut broken = answer(&[1.0; 6]);
    broken[24 + 32..][..8].copy_from_slice(&f64::NAN.to_le_bytes());
    let mut energy = answer(&[1.0; 6]);
    energy[12..20].copy_from_slice(&f64::INFINITY.to_le_bytes());
    let mut extras = answer(&[1.0; 6]);
    let at = extras.len() - 6;
    extras[at..at + 4].copy_from_slice(&i32::MAX.to_le_bytes());
    let mut negative = extras.clone();
    negative[at..at + 4].copy_from_slice(&(-1i32).to_le_bytes());
    let says = |says: Vec<u8>| Manner { says: Some(says), ..Manner::default() };
    let about = |text: &str| {
        let whole = answer(&[1.0; 6]);
        says([&whole[..at], &(text.len() as i32).to_le_bytes(), text.as_bytes()].concat())
    };
    for (manner, part) in [
        (says(answer(&[0.0; 9])), "3 atoms where 2 were sent"),
        (says(answer(&[])), "0 atoms where 2"),
        (says(word("READY")), "`READY       ` to GETFORCE"),
        (says(b"HTTP/1.1 200 OK".to_vec()), "`HTTP/1.1 200` to GETFORCE"),
        (says([answer(&[0.0; 6]), vec![1, 2, 3]].concat()), "3 bytes after its answer"),
        (says(extras), "extras of 2147483647 bytes"),
        (says(negative), "extras of -1 bytes"),
        (says(broken), "sent NaN as force y on atom 2 of replica 7 at 0.0000 ps"),
        (says(energy), "sent inf as energy of replica 7"),
        (about(r#"{"has_energy": false}"#), "energy=false"),
        (about(r#"{"conservative": false}"#), "energy=false"),
        (about(r#"{"kind": "mean-force", "temperature_K": 300}"#), "forces=mean-force,temperature=300 K"),
    ] {
        let (directory, mut remote) = server("wait=0.3 s");
        let joined = client(&directory, manner);
        let error = evaluate(&mut remote, 1).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("client 1 (process"), "`{error}` does not say `{part}`");
        drop(remote);
        joined.join().unwrap();
    }
}

#[test]
fn silence_is_noticed_and_the_work_done_elsewhere() {
    let (directory, mut remote) = server("timeout=0.3 s,clients=2");
    let silent = client(&directory, Manner { silent: true, ..Manner::default() });
    let good = client(&directory, Manner::default());
    let start = Instant::now();
    check(&evaluate(&mut remote, 2).unwrap(), 2);
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(5));
    drop(remote);
    assert!(!silent.join().unwrap().2 && good.join().unwrap().2);

    let (directory, mut remote) = server("timeout=0.2 s,wait=0.3 s");
    let silent = client(&directory, Manner { silent: true, ..Manner::default() });
    let error = evaluate(&mut remote, 1).unwrap_err().to_string();
    assert!(
        error.contains("0 of 1 clients") && error.contains("silent for 0.") && error.contains("(timeout), at work on replica 7"),
        "{error}"
    );
    silent.join().unwrap();
}

#[test]
fn too_few_clients_and_deadly_structures_are_errors() {
    let (directory, mut remote) = server("wait=0.3 s,clients=2");
    let one = client(&directory, Manner::default());
    let error = evaluate(&mut remote, 1).unwrap_err().to_string();
    assert!(error.contains("1 of 2 clients at UNIX socket"), "{error}");
    // What failed stays failed.
    assert_eq!(evaluate(&mut remote, 1).unwrap_err().to_string(), error);
    drop(remote);
    assert_eq!(one.join().unwrap(), (vec![], 0, true));

    let (directory, mut remote) = server("wait=1 s,clients=4");
    let clients: Vec<_> = (0..4).map(|_| client(&directory, Manner { hangs_up: Some(20), ..Manner::default() })).collect();
    let error = evaluate(&mut remote, 1).unwrap_err().to_string();
    assert!(error.contains("replica 7 at 0.0000 ps cost 3 clients") && error.contains("in the middle of its answer"), "{error}");
    drop(remote);
    assert_eq!(clients.into_iter().map(|c| c.join().unwrap().1).sum::<usize>(), 3);
}

#[test]
fn late_joiners_get_work_and_replicas_stay_with_their_clients() {
    let (directory, mut remote) = server("");
    let first = client(&directory, Manner { forgets: true, ..Manner::default() });
    check(&evaluate(&mut remote, 2).unwrap(), 2);
    let second = client(&directory, Manner { forgets: true, ..Manner::default() });
    std::thread::sleep(Duration::from_millis(500));
    remote.prepare(&batch(2).0, DType::F64).unwrap();
    let (batch, state) = batch(2);
    let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: Want::FORCES };
    let mut out = Output::new(&batch, DType::F64, Want::FORCES);
    for _ in 0..20 {
        remote.evaluate(&input, &mut out).unwrap();
    }
    drop(remote);
    let (first, second) = (first.join().unwrap(), second.join().unwrap());
    assert_eq!(first.1 + second.1, 42);
    assert_eq!(second.1, 20, "both have one of two replicas");
    assert!(second.0.windows(2).all(|w| w[0] == w[1]), "{:?}", second.0);
}

#[test]
fn batches_are_padded_and_announced() {
    let (directory, mut remote) = server("batch=2");
    let mut s = connect(&directory);
    let ours = std::thread::spawn(move || (evaluate(&mut remote, 3), remote));
    assert_eq!(read(&mut s, 12).unwrap(), word("STATUS"));
    s.write_all(&word("NEEDINIT")).unwrap();
    assert_eq!(read(&mut s, 12).unwrap(), word("INIT"));
    assert_eq!(integer(&mut s), Some(7));
    let n = integer(&mut s).unwrap() as usize;
    assert!(String::from_utf8(read(&mut s, n).unwrap()).unwrap().contains(", batch_size:2"));
    assert_eq!(read(&mut s, 12).unwrap(), word("STATUS"));
    s.write_all(&word("READY")).unwrap();
    for message in 0..2 {
        if message > 0 {
            assert_eq!(read(&mut s, 12).unwrap(), word("STATUS"));
            s.write_all(&word("READY")).unwrap();
        }
        assert_eq!(read(&mut s, 12).unwrap(), word("POSDATA"));
        assert_eq!(integer(&mut s), Some(2));
        read(&mut s, 2 * 144).unwrap();
        let x = numbers(&read(&mut s, 2 * 48).unwrap());
        assert_eq!(x[..6] == x[6..], message == 1, "the last structure is repeated");
        assert_eq!(read(&mut s, 12).unwrap(), word("GETFORCE"));
        let one = answer(&x);
        let forces = one[24..24 + 96].to_vec();
        let virials = [&one[120..192], &one[120..192]].concat();
        let none = 0i32.to_le_bytes();
        let whole = [word("FORCEREADY"), doubles(&[0.25; 2]), 2i32.to_le_bytes().to_vec(), forces, virials, none.to_vec(), none.to_vec()];
        s.write_all(&whole.concat()).unwrap();
    }
    let (out, _) = ours.join().unwrap();
    check(&out.unwrap(), 3);

    let (directory, mut remote) = server("batch=2,wait=0.2 s");
    let plain = client(&directory, Manner::default());
    let error = evaluate(&mut remote, 2).unwrap_err().to_string();
    assert!(error.contains("does not ask for INIT"), "{error}");
    drop(remote);
    plain.join().unwrap();
}

#[test]
fn our_own_driver_gives_the_bits_of_the_provider() {
    let text = "lj:sigma=3.405 A,epsilon=1 kJ/mol";
    let mut system = System::particles("argon", 3, 39.948);
    system.types = vec![18; 3];
    let system = Arc::new(system);
    let batch = Batch::uniform(system.clone(), 5, 0).unwrap();
    let x: Vec<f64> = (0..15).flat_map(|i| [(i % 3) as f64 * 0.37, 0.01 * i as f64, 0.3 / (1.0 + i as f64)]).collect();
    for dtype in [DType::F64, DType::F32] {
        let mut here = parse_spec(text).unwrap().build().unwrap().provider;
        let state = State::at_rest(&batch, &x, dtype).unwrap();
        let want = Want::ENERGY;
        let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want };
        let (mut a, mut b) = (Output::new(&batch, dtype, want), Output::new(&batch, dtype, want));
        here.prepare(&batch, dtype).unwrap();
        here.evaluate(&input, &mut a).unwrap();
        for options in ["clients=3", "batch=2,clients=3", "classic=true,clients=3"] {
            let (directory, mut remote) = server(options);
            let drivers: Vec<_> = (0..3)
                .map(|_| {
                    let address = Address::Unix(directory.path().join("s"));
                    let structure = Structure { system: system.clone(), periodic: false };
                    let provider = parse_spec(text).unwrap().build().unwrap().provider;
                    std::thread::spawn(move || {
                        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
                        let forces = Forces::new(vec![structure], provider, dtype, pool).unwrap();
                        Driver::new(forces, false, Duration::from_secs(5)).serve(&address, Duration::from_secs(5), &|| false)
                    })
                })
                .collect();
            remote.prepare(&batch, dtype).unwrap();
            for _ in 0..3 {
                b.forces.set(0, f64::NAN);
                remote.evaluate(&input, &mut b).unwrap();
                assert_eq!(a, b, "{dtype} {options}");
            }
            drop(remote);
            let ends: Vec<End> = drivers.into_iter().map(|d| d.join().unwrap().unwrap().end).collect();
            assert_eq!(ends, [End::Exit; 3]);
        }
    }
}

#[test]
fn threads_share_a_server() {
    let (directory, remote) = server("clients=2");
    let clients: Vec<_> = (0..2).map(|_| client(&directory, Manner { needs_init: true, ..Manner::default() })).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut fork = remote.fork().unwrap();
            scope.spawn(move || {
                let (batch, state) = batch(3);
                let want = Want { energy: true, virial: true, ..Want::FORCES };
                let mut out = Output::new(&batch, DType::F64, want);
                fork.prepare(&batch, DType::F64).unwrap();
                for _ in 0..50 {
                    let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want };
                    fork.evaluate(&input, &mut out).unwrap();
                    check(&out, 3);
                }
            });
        }
    });
    drop(remote);
    let seen: Vec<Seen> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    assert_eq!(seen.iter().map(|s| s.1).sum::<usize>(), 600);
    assert!(seen.iter().all(|s| s.2 && s.1 > 0));
}

#[test]
fn addresses_that_are_taken_are_refused_and_left_overs_replaced() {
    let (directory, remote) = server("");
    let text = format!("ipi:unix=s,prefix={}/", directory.path().display());
    let ProviderSpec::Ipi(spec) = parse_spec(&text).unwrap() else { panic!() };
    let error = Remote::open(&spec, true).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("cannot listen at UNIX socket"), "{error}");
    drop(remote);
    assert!(!directory.path().join("s").exists());
    // What a killed server leaves.
    drop(std::os::unix::net::UnixListener::bind(directory.path().join("s")).unwrap());
    assert!(directory.path().join("s").exists());
    Remote::open(&spec, true).unwrap();
    let ProviderSpec::Ipi(spec) = parse_spec("ipi:127.0.0.1:0").unwrap() else { panic!() };
    Remote::open(&spec, true).unwrap();
}
