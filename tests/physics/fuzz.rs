//! Damaged files: readers of force fields, provider trees and settings refuse them with a message that says where, and
//! neither panic nor hang. Mutations are random but the same every time.

use scorefield::config::{ExchangeFlags, RunSettings, Settings, SimulateFlags, Subject, load};
use scorefield_integrators::{Batch, DType, Kind, Noise, Output, Purpose, State, System, UnitSystem, Want};
use scorefield_models::mechanics::Mechanics;
use scorefield_models::parse_spec;
use scorefield_models::spec::read_toml;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Random whole numbers.
struct Dice {
    noise: Noise,
    next: u64,
}

impl Dice {
    fn new(seed: u64) -> Self {
        Dice { noise: Noise::new(seed), next: 0 }
    }

    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        ((u64::from(self.noise.bits(0, 0, self.next, Purpose::Bootstrap)[0]) * n.max(1) as u64) >> 32) as usize
    }
}

/// What numbers are replaced by.
const NUMBERS: [&str; 16] = [
    "",
    "-1",
    "0",
    "1e308",
    "-1e308",
    "1e-320",
    "nan",
    "inf",
    "-inf",
    "99999999999999999999999999",
    "4294967295",
    "4294967296",
    "0x10",
    "1e",
    "½",
    "18446744073709551616",
];

/// `text` damaged in one to three places.
fn mutated(text: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for _ in 0..1 + dice.below(3) {
        let at = dice.below(bytes.len());
        let until = (at + 1 + dice.below(200)).min(bytes.len());
        match dice.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << dice.below(8)),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = b"<>&\"'=[]{}\n\0#.,;-"[dice.below(17)]),
            3 => {
                let piece = bytes[at..until].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            4 => drop(bytes.drain(at..until)),
            5 => {
                // A whole line again, or away.
                let begin = bytes[..at].iter().rposition(|&b| b == b'\n').map_or(0, |p| p + 1);
                let end = bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |p| at + p + 1);
                let line = bytes[begin..end].to_vec();
                bytes.splice(begin..end, if dice.below(2) == 0 { line.repeat(2) } else { Vec::new() });
            }
            _ => {
                // The next number.
                let digit = |b: &u8| b.is_ascii_digit();
                let Some(begin) = bytes[at..].iter().position(digit).map(|p| at + p) else { continue };
                let end = bytes[begin..].iter().position(|b| !digit(b) && !b".eE+-".contains(b)).map_or(bytes.len(), |p| begin + p);
                bytes.splice(begin..end, NUMBERS[dice.below(NUMBERS.len())].bytes());
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// Counts what became of damaged files, and keeps the time.
struct Tally {
    what: &'static str,
    accepted: usize,
    refused: usize,
    slowest: Duration,
}

impl Tally {
    fn new(what: &'static str) -> Self {
        Tally { what, accepted: 0, refused: 0, slowest: Duration::ZERO }
    }

    /// Notes how one reading went; `text` is shown where the message says too little.
    fn note(&mut self, began: Instant, error: Option<String>, places: impl Fn(&str) -> bool, text: &[u8]) {
        self.slowest = self.slowest.max(began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(5), "{} took {:?}:\n{}", self.what, began.elapsed(), String::from_utf8_lossy(text));
        match error {
            None => self.accepted += 1,
            Some(message) => {
                self.refused += 1;
                assert!(!message.trim().is_empty() && places(&message), "{}: `{message}` does not say where", self.what);
                assert!(message.len() < 4000, "{}: a message of {} bytes", self.what, message.len());
            }
        }
    }

    fn finish(self) {
        eprintln!("{}: {} damaged files refused, {} accepted, slowest {:?}", self.what, self.refused, self.accepted, self.slowest);
        assert!(self.refused > 0 && self.accepted > 0, "mutations are too harsh or too mild");
    }
}

/// True where `message` holds a line, or counts a term or particle, which is as good.
fn says_where(message: &str) -> bool {
    let digit_after =
        |key: &str| message.match_indices(key).any(|(i, _)| message[i + key.len()..].starts_with(|c: char| c.is_ascii_digit()));
    ["line ", "bond ", "angle ", "torsion ", "particle ", "exception ", "constraint "].iter().any(|k| digit_after(k))
}

#[test]
fn damaged_force_fields() {
    let mut dice = Dice::new(61);
    let mut tally = Tally::new("force fields");
    for case in ["aldp-obc", "aldp-amber14-obc1", "torsions", "aldp-constraints-hbonds"] {
        let path = format!("{}/tests/data/mechanics/{case}.system.xml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read(path).unwrap();
        for _ in 0..400 {
            let bytes = mutated(&text, &mut dice);
            let damaged = String::from_utf8_lossy(&bytes);
            let began = Instant::now();
            let read = Mechanics::from_xml(&damaged, "damaged.xml");
            let error = read.as_ref().err().map(|e| e.to_string());
            if let Some(e) = &error {
                assert!(e.starts_with("damaged.xml: "), "{e}");
            }
            // A section that is gone altogether has no line.
            tally.note(began, error, |m| says_where(m) || m.contains("there are no particles") || m.contains(" particles, "), &bytes);
            if let Ok(mechanics) = read {
                // What was accepted fits a system, or says why not.
                let mut system = System::particles("damaged", mechanics.atoms(), 1.0);
                let _ = mechanics.apply_to(&mut system, "damaged.xml");
            }
        }
    }
    tally.finish();
}

#[test]
fn damaged_force_fields_that_are_accepted_compute() {
    let mut dice = Dice::new(62);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("damaged.xml");
    let text = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mechanics/aldp-obc.system.xml")).unwrap();
    let mut computed = 0;
    for _ in 0..150 {
        std::fs::write(&file, mutated(&text, &mut dice)).unwrap();
        let Ok(built) = parse_spec(&format!("mm:{}", file.display())).and_then(|s| s.build()) else { continue };
        let (mut provider, mechanics) = (built.provider, built.mechanics.unwrap());
        let mut system = System::particles("damaged", mechanics.atoms(), 1.0);
        if mechanics.apply_to(&mut system, "damaged.xml").is_err() {
            continue;
        }
        let positions: Vec<f64> = (0..3 * system.len()).map(|k| 0.1 * k as f64 + 0.05 * (k * k % 7) as f64).collect();
        for (dtype, replicas) in [(DType::F32, 1), (DType::F64, 9)] {
            let batch = Batch::uniform(Arc::new(system.clone()), replicas, 0).unwrap();
            let state = State::at_rest(&batch, &positions.repeat(replicas), dtype).unwrap();
            let mut out = Output::new(&batch, dtype, Want::ENERGY);
            if provider.prepare(&batch, dtype).is_ok() {
                let input = scorefield_integrators::Input {
                    batch: &batch,
                    positions: state.positions(),
                    cells: None,
                    clock: state.clock,
                    want: Want::ENERGY,
                };
                let _ = provider.evaluate(&input, &mut out);
                computed += 1;
            }
        }
    }
    assert!(computed > 20, "{computed}");
}

#[test]
fn force_fields_made_to_hurt() {
    let refused = |what: &str, text: &str| {
        let began = Instant::now();
        let error = Mechanics::from_xml(text, "bad.xml").expect_err(what).to_string();
        assert!(began.elapsed() < Duration::from_secs(5), "{what} took {:?}", began.elapsed());
        let place = error.starts_with("bad.xml: line ") || error == "bad.xml: there are no particles";
        assert!(place && error.len() < 1000, "{what}: {error:.300}");
    };
    refused("nothing", "");
    refused("zeros", &"\0".repeat(1000));
    refused("a deep tree", &"<System>".repeat(20_000));
    refused("a deep closed tree", &("<a>".repeat(20_000) + &"</a>".repeat(20_000)));
    refused("a deep tree in a section", &format!("<System><Forces>{}{}</Forces></System>", "<a>".repeat(5000), "</a>".repeat(5000)));
    refused(
        "entities",
        &format!("<!DOCTYPE a [<!ENTITY a \"{}\"><!ENTITY b \"{}\">]><System>&b;</System>", "x".repeat(1000), "&a;".repeat(1000)),
    );
    refused("a long attribute", &format!("<System><Particles><Particle mass=\"{}\"/></Particles></System>", "1".repeat(1_000_000)));
    refused("many attributes", &format!("<System {}/>", (0..20_000).map(|i| format!("a{i}=\"\" ")).collect::<String>()));
    refused("another document", "<html><body>404 Not Found</body></html>");
}

#[test]
fn damaged_provider_trees() {
    let valid = [
        "kind = \"lj\"\nsigma = \"3.405 A\"\nepsilon = \"0.0103 eV\"\nn = 13\nmass = \"39.9 u\"\n",
        "kind = \"harmonic\"\nk = \"100 kJ/mol/nm^2\"\ndimension = 2\ncentre = \"start\"\n",
        "kind = \"sum\"\nterms = [\n  { kind = \"muller-brown\", mass = 1.5 },\n  { kind = \"scale\", factor = 0.5, of = { kind = \"muller-brown\" } },\n]\n",
        "kind = \"double-well-2d\"\nbarrier = 3.0\ntilt = -0.5\nk = 2\n",
    ];
    let mut dice = Dice::new(63);
    let mut tally = Tally::new("provider trees");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tree.toml");
    for text in valid {
        for _ in 0..300 {
            let bytes = mutated(text.as_bytes(), &mut dice);
            std::fs::write(&file, &bytes).unwrap();
            let began = Instant::now();
            let built = read_toml(&file).and_then(|spec| spec.build());
            tally.note(began, built.err().map(|e| e.to_string()), |_| true, &bytes);
            // The same on one line, as on the command line.
            let line = String::from_utf8_lossy(&bytes).replace("kind = ", "").replace('\n', ",").replacen(',', ":", 1).replace('"', "");
            let began = Instant::now();
            let _ = parse_spec(&line).and_then(|spec| spec.build());
            assert!(began.elapsed() < Duration::from_secs(5), "{line}");
        }
    }
    tally.finish();
    for (what, text) in [
        ("a deep tree", format!("kind = \"sum\"\nterms = [{}{}]", "{ kind = \"sum\", terms = [".repeat(3000), "] }".repeat(3000))),
        ("deep brackets", format!("kind = {}", "[".repeat(100_000))),
        ("deep keys", format!("{}kind = 1", "a.".repeat(100_000))),
        ("a long name", format!("kind = \"{}\"", "l".repeat(500_000))),
        ("too much", "#".repeat(5 << 20)),
    ] {
        std::fs::write(&file, &text).unwrap();
        let began = Instant::now();
        let error = read_toml(&file).expect_err(what).to_string();
        assert!(began.elapsed() < Duration::from_secs(5), "{what} took {:?}", began.elapsed());
        assert!(!error.is_empty(), "{what}");
    }
}

#[test]
fn damaged_settings() {
    let simulate = "structure = \"peptide.pdb\"\nmodel = \"mm:peptide.xml\"\nintegrator = \"baoab\"\ndt = \"1 fs\"\nfriction = \"2 /ps\"\nsteps = 1000\n\
        temperature = \"310 K\"\nreplicas = 8\nhydrogen-mass = \"3 u\"\nremove-drift = true\non-divergence = \"freeze\"\ncheck-every = 50\n\
        out = \"run\"\nlog-every = 100\ntrajectory-format = \"dcd\"\ncheckpoint-minutes = 1.5\nseed = 7\nthreads = 2\ndtype = \"f32\"\n";
    let exchange = "model = \"muller-brown\"\ntemperatures = \"300 K..600 K\"\ncount = 8\ncopies = 2\nexchange-every = 100\ntime = \"1 ns\"\nisa = \"portable\"\n";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let subject = Subject {
        name: "model".into(),
        units: UnitSystem::Si,
        kind: Kind::Physical,
        energy: true,
        temperature: None,
        built_in: false,
        removes_drift: true,
    };
    let resolve = |mut settings: RunSettings| settings.complete(&subject).and_then(|()| settings.resolve(&subject)).map(|_| ());
    let mut dice = Dice::new(64);
    let mut tally = Tally::new("settings");
    for (text, is_exchange) in [(simulate, false), (exchange, true)] {
        for _ in 0..600 {
            let bytes = mutated(text.as_bytes(), &mut dice);
            std::fs::write(&file, &bytes).unwrap();
            let began = Instant::now();
            let read = if is_exchange {
                load::<Settings<ExchangeFlags>>(&file).map(|s| RunSettings::Exchange(s.args))
            } else {
                load::<Settings<SimulateFlags>>(&file).map(|s| RunSettings::Simulate(s.args))
            };
            let utf8 = std::str::from_utf8(&bytes).is_ok();
            tally.note(began, read.as_ref().err().map(|e| e.to_string()), |m| m.contains(", line ") || !utf8, &bytes);
            if let Ok(settings) = read {
                let began = Instant::now();
                let error = resolve(settings).err().map(|e| e.to_string());
                assert!(began.elapsed() < Duration::from_secs(5), "{}", String::from_utf8_lossy(&bytes));
                assert!(error.as_ref().is_none_or(|e| e.contains("--")), "`{error:?}` names no flag");
            }
        }
    }
    tally.finish();
    for (what, text) in [
        ("deep brackets", format!("steps = {}", "[".repeat(100_000))),
        ("deep tables", format!("steps = {}1{}", "{ a = ".repeat(3000), "}".repeat(3000))),
        ("a long key", format!("{} = 1", "s".repeat(500_000))),
        ("many keys", (0..20_000).map(|i| format!("a{i} = 1\n")).collect()),
        ("too much", "#".repeat(5 << 20)),
    ] {
        std::fs::write(&file, &text).unwrap();
        let began = Instant::now();
        let error = load::<Settings<SimulateFlags>>(&file).expect_err(what).to_string();
        assert!(began.elapsed() < Duration::from_secs(5), "{what} took {:?}", began.elapsed());
        assert!(error.contains("run.toml"), "{what}: {error:.200}");
    }
}
