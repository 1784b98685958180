//! The driver before a scripted server that keeps, stretches and breaks the protocol.

use super::{Address, Driver, End, Forces, Report, Structure, WireError};
use scorefield_integrators::units::{KJ_PER_HARTREE, NM_PER_BOHR};
use scorefield_integrators::{DType, System};
use scorefield_models::parse_spec;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_millis(400);
const SIGMA: f64 = 0.3405;
const EPSILON: f64 = 1.0;

fn forces(counts: &[usize]) -> Forces {
    let structure = |n| {
        let mut system = System::particles("argon", n, 39.948);
        system.types = vec![18; n];
        Structure { system: Arc::new(system), periodic: false }
    };
    let provider = parse_spec("lj:sigma=3.405 A,epsilon=1 kJ/mol").unwrap().build().unwrap().provider;
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    Forces::new(counts.iter().map(|&n| structure(n)).collect(), provider, DType::F64, pool).unwrap()
}

type Served = JoinHandle<Result<Report, WireError>>;

/// A driver in a thread of its own, connected to us.
fn connected() -> (UnixStream, Served) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let driver = std::thread::spawn(move || {
        Driver::new(forces(&[3]), false, PATIENCE).serve(&Address::Unix(path), Duration::from_secs(5), &|| false)
    });
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (stream, driver)
}

fn header(word: &str) -> Vec<u8> {
    format!("{word:<12}").into_bytes()
}

fn doubles(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn init(text: &str) -> Vec<u8> {
    [header("INIT"), 0i32.to_le_bytes().to_vec(), (text.len() as i32).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat()
}

/// Positions in bohr of a slightly bent row of atoms.
fn row(n: usize, bend: f64) -> Vec<f64> {
    (0..n).flat_map(|i| [i as f64 * 7.1, bend * (i % 2) as f64, 0.1 * i as f64]).collect()
}

fn positions(x: &[f64]) -> Vec<u8> {
    [header("POSDATA"), doubles(&[0.0; 18]), ((x.len() / 3) as i32).to_le_bytes().to_vec(), doubles(x)].concat()
}

fn read(stream: &mut UnixStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn integer(bytes: &[u8]) -> usize {
    i32::from_le_bytes(bytes.try_into().unwrap()) as usize
}

/// A whole FORCEREADY message for one structure of `n` atoms.
fn answer(stream: &mut UnixStream, n: usize) -> Vec<u8> {
    let mut message = read(stream, 12 + 8 + 4 + 24 * n + 72 + 4);
    let extras = integer(&message[message.len() - 4..]);
    message.extend(read(stream, extras));
    message
}

fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn say(stream: &mut UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

#[test]
fn a_classic_conversation_gives_energies_forces_and_virials() {
    let (mut s, driver) = connected();
    for (word, then) in [("NEEDINIT", Some(init("{}"))), ("READY", None), ("READY", Some(positions(&row(3, 0.5)))), ("HAVEDATA", None)] {
        for _ in 0..2 {
            say(&mut s, &header("STATUS"));
            assert_eq!(read(&mut s, 12), header(word));
        }
        say(&mut s, &then.unwrap_or_default());
    }
    say(&mut s, &header("GETFORCE"));
    let message = answer(&mut s, 3);
    assert_eq!(message[..12], header("FORCEREADY"));
    let energy = numbers(&message[12..20])[0];
    let f = numbers(&message[24..24 + 72]);
    let virial = numbers(&message[96..96 + 72]);
    // The same by hand.
    let x: Vec<f64> = row(3, 0.5).iter().map(|x| x * NM_PER_BOHR).collect();
    let (mut want, mut pull) = (0.0, vec![0.0; 9]);
    for i in 0..3 {
        for j in 0..i {
            let d: Vec<f64> = (0..3).map(|a| x[3 * i + a] - x[3 * j + a]).collect();
            let r2: f64 = d.iter().map(|d| d * d).sum();
            let s6 = (SIGMA * SIGMA / r2).powi(3);
            want += 4.0 * EPSILON * (s6 * s6 - s6);
            for a in 0..3 {
                let pair = 24.0 * EPSILON * (2.0 * s6 * s6 - s6) / r2 * d[a];
                pull[3 * i + a] += pair;
                pull[3 * j + a] -= pair;
            }
        }
    }
    assert!((energy * KJ_PER_HARTREE - want).abs() < 1e-12 * want.abs());
    for k in 0..9 {
        assert!((f[k] / NM_PER_BOHR * KJ_PER_HARTREE - pull[k]).abs() < 1e-10 * pull[3].abs().max(1.0), "force {k}");
        let w: f64 = (0..3).map(|i| x[3 * i + k / 3] * pull[3 * i + k % 3]).sum();
        assert!((virial[k] * KJ_PER_HARTREE - w).abs() < 1e-10, "virial {k}");
    }
    let extras: serde_json::Value = serde_json::from_slice(&message[172..]).unwrap();
    assert_eq!(extras["conservative"], true);
    say(&mut s, &header("EXIT"));
    let report = driver.join().unwrap().unwrap();
    assert_eq!((report.end, report.evaluations), (End::Exit, 1));
}

#[test]
fn however_a_message_is_cut_the_answer_has_the_same_bits() {
    let whole = [init("x"), positions(&row(3, 0.4)), header("GETFORCE")].concat();
    let mut answers = Vec::new();
    for piece in [whole.len(), 7, 1] {
        let (mut s, driver) = connected();
        for bytes in whole.chunks(piece) {
            say(&mut s, bytes);
            if piece < whole.len() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        answers.push(answer(&mut s, 3));
        drop(s);
        assert_eq!(driver.join().unwrap().unwrap().end, End::HungUp);
    }
    assert!(answers[0] == answers[1] && answers[0] == answers[2]);
}

#[test]
fn a_server_that_hangs_up_at_any_byte_ends_the_driver() {
    let whole = [init("some text"), positions(&row(3, 0.4)), header("GETFORCE")].concat();
    let ends = [0, init("some text").len(), whole.len() - 12, whole.len()];
    for cut in 0..=whole.len() {
        let (mut s, driver) = connected();
        say(&mut s, &whole[..cut]);
        drop(s);
        match driver.join().unwrap() {
            Ok(report) => assert!(ends.contains(&cut) && report.end == End::HungUp, "after {cut} bytes"),
            Err(WireError::Cut { .. }) => assert!(!ends.contains(&cut), "after {cut} bytes"),
            // The answer found nobody.
            Err(WireError::Io { .. }) => assert_eq!(cut, whole.len()),
            Err(e) => panic!("after {cut} bytes: {e}"),
        }
    }
}

#[test]
fn what_the_protocol_forbids_is_an_error_that_says_so() {
    let long = |word: &str, n: i32| [header(word), 0i32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat();
    let count = |n: i32| [init(""), header("POSDATA"), doubles(&[0.0; 18]), n.to_le_bytes().to_vec()].concat();
    let mut broken = row(3, 0.4);
    broken[4] = f64::NAN;
    for (bytes, what) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "no header"),
        (long("INIT", i32::MAX), "2147483647 bytes"),
        (long("INIT", -1), "-1 bytes"),
        (count(i32::MAX), "2147483647 atoms"),
        (count(0), "0 atoms"),
        (count(-3), "-3 atoms"),
        ([init(""), header("GETFORCE")].concat(), "without POSDATA"),
        ([init(""), positions(&row(3, 0.4)), positions(&row(3, 0.4))].concat(), "twice"),
        ([init("batch_size:0"), vec![]].concat(), "batch_size"),
        ([init(""), positions(&broken)].concat(), "NaN as y of atom 2"),
        ([init(""), positions(&[0.0; 9])].concat(), "evaluation 1: force x on atom 1"),
    ] {
        let (mut s, driver) = connected();
        say(&mut s, &bytes);
        let error = driver.join().unwrap().unwrap_err().to_string();
        assert!(error.contains(what), "`{error}` does not say `{what}`");
    }
}

#[test]
fn silence_within_a_message_is_an_error_and_between_messages_is_not() {
    let (mut s, driver) = connected();
    std::thread::sleep(PATIENCE * 2);
    say(&mut s, &header("STATUS"));
    assert_eq!(read(&mut s, 12), header("NEEDINIT"));
    say(&mut s, b"POSDA");
    assert!(matches!(driver.join().unwrap(), Err(WireError::Silent { .. })));
}

#[test]
fn batches_and_other_numbers_of_one_element_are_understood() {
    let (mut s, driver) = connected();
    // Alone first.
    let mut alone = Vec::new();
    for bend in [0.1, 0.2, 0.3] {
        say(&mut s, &[init(""), positions(&row(5, bend)), header("GETFORCE")].concat());
        alone.push(answer(&mut s, 5));
    }
    let x: Vec<f64> = [0.1, 0.2, 0.3].iter().flat_map(|&b| row(5, b)).collect();
    let batch = [
        init("{\"a\":1}, batch_size:3"),
        header("POSDATA"),
        5i32.to_le_bytes().to_vec(),
        doubles(&[0.0; 54]),
        doubles(&x),
        header("GETFORCE"),
    ]
    .concat();
    say(&mut s, &batch);
    let message = read(&mut s, 12 + 24 + 4 + 3 * 120 + 3 * 72);
    for (b, one) in alone.iter().enumerate() {
        assert_eq!(message[12 + 8 * b..20 + 8 * b], one[12..20], "energy {b}");
        assert_eq!(message[40 + 120 * b..160 + 120 * b], one[24..144], "forces {b}");
        assert_eq!(message[400 + 72 * b..472 + 72 * b], one[144..216], "virial {b}");
    }
    for _ in 0..3 {
        let n = integer(&read(&mut s, 4));
        read(&mut s, n);
    }
    say(&mut s, &header("EXIT"));
    assert_eq!(driver.join().unwrap().unwrap().evaluations, 6);
}

#[test]
fn tcp_and_a_server_that_starts_late() {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let address = Address::Tcp("127.0.0.1".into(), port);
    let driver = std::thread::spawn(move || Driver::new(forces(&[3]), false, PATIENCE).serve(&address, Duration::from_secs(10), &|| false));
    std::thread::sleep(Duration::from_millis(300));
    let (mut s, _) = TcpListener::bind(("127.0.0.1", port)).unwrap().accept().unwrap();
    s.write_all(&header("STATUS")).unwrap();
    let mut word = [0; 12];
    s.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"NEEDINIT    ");
    s.write_all(&header("EXIT")).unwrap();
    assert_eq!(driver.join().unwrap().unwrap().end, End::Exit);
    let nobody =
        Driver::new(forces(&[3]), false, PATIENCE)
            .serve(&Address::Unix("/nonexistent/socket".into()), Duration::from_millis(50), &|| false);
    assert!(matches!(nobody, Err(WireError::NobodyListens { .. })));
}

#[test]
fn structures_that_a_message_could_not_tell_apart_are_refused() {
    let mut other = System::particles("neon", 3, 20.18);
    other.types = vec![10; 3];
    let mut argon = System::particles("argon", 3, 39.948);
    argon.types = vec![18; 3];
    let provider = || parse_spec("lj:sigma=3.405 A,epsilon=1 kJ/mol").unwrap().build().unwrap().provider;
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    let structures = [argon, other].map(|s| Structure { system: Arc::new(s), periodic: false }).to_vec();
    let error = Forces::new(structures.clone(), provider(), DType::F64, pool.clone()).err().unwrap().to_string();
    assert!(error.contains("both have 3 atoms"), "{error}");
    let reduced = parse_spec("lj").unwrap().build().unwrap().provider;
    let error = Forces::new(structures[..1].to_vec(), reduced, DType::F64, pool).err().unwrap().to_string();
    assert!(error.contains("reduced units"), "{error}");
}
