//! Other engines as providers, described but not opened: this package has no sockets. Whoever builds a tree of providers hands in
//! what opens them ([`ProviderSpec::build_with`](crate::spec::ProviderSpec::build_with)).

use crate::error::{Error, Result};
use scorefield_integrators::{Dimension, ForceProvider, Kind, Quantity, UnitSystem};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Listens for the engines that a description names.
pub type Open<'a> = dyn Fn(&RemoteSpec) -> Result<Box<dyn ForceProvider>> + 'a;

/// Most structures of one message.
const MAX_BATCH: usize = 1 << 16;
/// Most clients that can be asked for.
const MAX_CLIENTS: usize = 4096;

/// Engines that connect to us as clients of the i-PI protocol. Forces of one replica come from one client; replicas are shared
/// out over all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteSpec {
    /// Name of a UNIX socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix: Option<String>,
    /// What stands before the name.
    pub prefix: String,
    /// Address to listen at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// TCP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Clients that must be there before the first evaluation.
    pub clients: usize,
    /// Structures in one message.
    pub batch: usize,
    /// Time for one answer.
    pub timeout: Quantity,
    /// Time for a client to come where there is none.
    pub wait: Quantity,
    /// Whether the status is asked for before each step of the exchange.
    pub classic: bool,
    /// Whether energies mean something.
    pub energy: bool,
    /// What forces are, as [`Kind::name`] says it.
    pub forces: String,
    /// Temperature of mean forces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Quantity>,
    /// Edge of the cell that clients are told where a system has none.
    #[serde(rename = "box")]
    pub edge: Quantity,
}

impl Default for RemoteSpec {
    fn default() -> Self {
        RemoteSpec {
            unix: None,
            prefix: "/tmp/ipi_".into(),
            host: None,
            port: None,
            clients: 1,
            batch: 1,
            timeout: Quantity::new(600.0, "s"),
            wait: Quantity::new(60.0, "s"),
            classic: false,
            energy: true,
            forces: "physical".into(),
            temperature: None,
            edge: Quantity::new(200.0, "A"),
        }
    }
}

/// What a description means, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteSettings {
    /// Clients that must be there before the first evaluation.
    pub clients: usize,
    /// Structures in one message.
    pub batch: usize,
    /// Time for one answer.
    pub timeout: Duration,
    /// Time for a client to come.
    pub wait: Duration,
    /// Whether the status is asked for before each step of the exchange.
    pub classic: bool,
    /// Whether energies mean something.
    pub energy: bool,
    /// What forces mean.
    pub kind: Kind,
    /// Edge of the cell for systems without one, nm.
    pub edge: f64,
}

impl RemoteSpec {
    /// Checks everything but the address.
    ///
    /// # Errors
    /// Names the parameter, its value and what it should be.
    pub fn settings(&self) -> Result<RemoteSettings> {
        let refuse = |name: &str, value: String, remedy: &str| {
            Err(Error::Parameter { model: "ipi".into(), name: name.into(), value, remedy: remedy.into() })
        };
        let time = |name: &str, value: &Quantity| {
            let ps = value.resolve(Dimension::TIME, UnitSystem::Si)?;
            match Duration::try_from_secs_f64(ps * 1e-12) {
                Ok(time) if time > Duration::ZERO && time < Duration::from_secs(1 << 30) => Ok(time),
                _ => refuse(name, value.to_string(), "write a time above zero, for example `60 s`").map(|()| Duration::ZERO),
            }
        };
        if !(1..=MAX_CLIENTS).contains(&self.clients) {
            refuse("clients", self.clients.to_string(), &format!("write a number from 1 to {MAX_CLIENTS}"))?;
        }
        if !(1..=MAX_BATCH).contains(&self.batch) {
            refuse("batch", self.batch.to_string(), &format!("write a number from 1 to {MAX_BATCH}"))?;
        }
        if self.batch > 1 && self.classic {
            refuse("classic", "true".into(), "clients that want it know no batches; leave `batch` out")?;
        }
        let edge = self.edge.resolve(Dimension::LENGTH, UnitSystem::Si)?;
        if !(edge > 0.0 && edge < 1e6) {
            refuse("box", self.edge.to_string(), "write a length that any of the structures fits in, for example `200 A`")?;
        }
        let temperature = self.temperature.as_ref().map(|t| t.resolve(Dimension::TEMPERATURE, UnitSystem::Si)).transpose()?;
        let kind = match (self.forces.as_str(), temperature) {
            ("physical", None) => Kind::Physical,
            ("pseudo-force", None) => Kind::PseudoForce,
            ("mean-force", Some(t)) if t > 0.0 && t.is_finite() => Kind::MeanForce { temperature_kelvin: t },
            ("mean-force", _) => return Err(Error::spec("ipi", "mean forces have a temperature; write for example `temperature=300 K`")),
            (_, Some(_)) => {
                return Err(Error::spec("ipi", "only mean forces have a temperature; write `forces=mean-force`, or leave it out"));
            }
            (other, _) => {
                let known = ["physical", "mean-force", "pseudo-force"].map(str::to_owned).to_vec();
                return Err(Error::Unknown { context: "ipi".into(), what: "kind of forces", name: other.into(), known });
            }
        };
        Ok(RemoteSettings {
            clients: self.clients,
            batch: self.batch,
            timeout: time("timeout", &self.timeout)?,
            wait: time("wait", &self.wait)?,
            classic: self.classic,
            energy: self.energy,
            kind,
            edge,
        })
    }
}

/// Opens nothing, and says who could.
///
/// # Errors
/// Always.
pub fn nobody(_: &RemoteSpec) -> Result<Box<dyn ForceProvider>> {
    Err(Error::spec("ipi", "engines over sockets are opened by the scorefield program (simulate, relax, evaluate), not from here"))
}

/// The table that `ipi:REST` stands for: `unix=NAME,…` or `HOST:PORT,…`.
pub(crate) fn table(rest: &str, text: &str) -> Result<toml::Table> {
    let mut table = toml::Table::from_iter([("kind".to_owned(), "ipi".into())]);
    let (first, pairs) = rest.split_once(',').unwrap_or((rest, ""));
    if first.contains('=') {
        crate::spec::read_pairs(rest, &mut table, text)?;
    } else {
        let port = first.rsplit_once(':').map(|(host, port)| (host.trim(), port.trim().parse::<u16>()));
        let Some((host, Ok(port))) = port.filter(|(host, _)| !host.is_empty()) else {
            return Err(Error::spec(text, "where to listen? Write `ipi:unix=NAME` or `ipi:HOST:PORT`, for example `ipi:0.0.0.0:31415`"));
        };
        table.insert("host".into(), host.trim_matches(['[', ']']).into());
        table.insert("port".into(), i64::from(port).into());
        crate::spec::read_pairs(pairs, &mut table, text)?;
    }
    // A name is a text also where it looks like a number.
    if let Some(name) = table.get_mut("unix").filter(|v| !v.is_str()) {
        *name = name.to_string().into();
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use crate::spec::{ProviderSpec, parse_spec};

    fn remote(text: &str) -> super::RemoteSpec {
        let ProviderSpec::Ipi(spec) = parse_spec(text).unwrap() else { panic!("{text}") };
        spec
    }

    #[test]
    fn addresses_and_options_are_read() {
        let spec = remote("ipi:unix=argon,clients=4, timeout = 5 s");
        assert_eq!((spec.unix.as_deref(), spec.clients, spec.settings().unwrap().timeout.as_secs_f64()), (Some("argon"), 4, 5.0));
        let spec = remote("ipi:[::1]:31415,batch=8");
        assert_eq!((spec.host.as_deref(), spec.port, spec.batch), (Some("::1"), Some(31415), 8));
        assert_eq!(remote("ipi:unix=7").unix.as_deref(), Some("7"));
        let kind = remote("ipi:unix=a,forces=mean-force,temperature=300 K").settings().unwrap().kind;
        assert_eq!(kind, scorefield_integrators::Kind::MeanForce { temperature_kelvin: 300.0 });
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let message = |text: &str| match parse_spec(text) {
            Ok(ProviderSpec::Ipi(spec)) => spec.settings().unwrap_err().to_string(),
            Ok(_) => panic!("{text}"),
            Err(e) => e.to_string(),
        };
        for (text, part) in [
            ("ipi:", "where to listen"),
            ("ipi:somewhere", "where to listen"),
            ("ipi:host:99999", "where to listen"),
            ("ipi:unix=a,clients=0", "clients = 0"),
            ("ipi:unix=a,batch=0", "batch = 0"),
            ("ipi:unix=a,batch=2,classic=true", "know no batches"),
            ("ipi:unix=a,timeout=0 s", "timeout = 0 s"),
            ("ipi:unix=a,wait=5", "time"),
            ("ipi:unix=a,box=-1 A", "box = -1 A"),
            ("ipi:unix=a,forces=mean-force", "temperature"),
            ("ipi:unix=a,temperature=3 K", "only mean forces"),
            ("ipi:unix=a,forces=physicle", "did you mean `physical`"),
            ("ipi:unix=a,client=2", "did you mean `clients`"),
        ] {
            let message = message(text);
            assert!(message.contains(part), "{text}: {message}");
        }
        let built = parse_spec("ipi:unix=a").unwrap().build().map(|_| ()).unwrap_err().to_string();
        assert!(built.contains("scorefield program"), "{built}");
    }
}
