//! File formats: their names, extensions and what they hold.

use super::error::{IoError, Result};
use std::path::Path;

/// What reads and writes a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Our own plain and extended XYZ.
    Xyz,
    /// Our own DCD.
    Dcd,
    /// chemfiles, under this name of its own.
    Chemfiles(&'static str),
}

/// One row of the table of formats.
#[derive(Debug)]
pub(crate) struct FormatInfo {
    /// The name that `--format` takes (any case); chemfiles' names are understood too.
    pub(crate) name: &'static str,
    /// File name extensions.
    extensions: &'static [&'static str],
    pub(crate) engine: Engine,
    /// Text, hence must be UTF-8.
    pub(crate) text: bool,
    /// Says which atoms there are; if not, a topology file is needed.
    pub(crate) topology: bool,
    /// Names molecules in the file (SDF titles) rather than through the file's name.
    #[cfg_attr(not(feature = "chemfiles"), allow(dead_code))]
    pub(crate) titled: bool,
    /// Trajectories of a run are written in it.
    pub(crate) trajectory: bool,
    /// A file cut where a frame ends and appended to is the file that would have been written at once.
    pub(crate) cut: bool,
}

const fn row(
    name: &'static str,
    extensions: &'static [&'static str],
    engine: Engine,
    text: bool,
    topology: bool,
    titled: bool,
    trajectory: bool,
    cut: bool,
) -> FormatInfo {
    FormatInfo { name, extensions, engine, text, topology, titled, trajectory, cut }
}

#[rustfmt::skip]
const FORMATS: &[FormatInfo] = &[
    //  name             extensions               engine                             text   topology titled trajectory cut
    row("xyz",           &["xyz"],                Engine::Xyz,                       true,  true,  false, true,      true),
    row("extxyz",        &["extxyz"],             Engine::Xyz,                       true,  true,  false, true,      true),
    row("dcd",           &["dcd"],                Engine::Dcd,                       false, false, false, true,      true),
    row("pdb",           &["pdb", "ent"],         Engine::Chemfiles("PDB"),          true,  true,  false, true,      false),
    row("mmcif",         &["cif", "mmcif"],       Engine::Chemfiles("mmCIF"),        true,  true,  false, false,     false),
    row("sdf",           &["sdf", "mol", "sd"],   Engine::Chemfiles("SDF"),          true,  true,  true, false,     false),
    row("mol2",          &["mol2"],               Engine::Chemfiles("MOL2"),         true,  true,  true, false,     false),
    row("gro",           &["gro"],                Engine::Chemfiles("GRO"),          true,  true,  false, false,     false),
    row("xtc",           &["xtc"],                Engine::Chemfiles("XTC"),          false, false, false, true,      true),
    row("trr",           &["trr"],                Engine::Chemfiles("TRR"),          false, false, false, true,      true),
    row("netcdf",        &["nc"],                 Engine::Chemfiles("Amber NetCDF"), false, false, false, true,      false),
    row("lammps",        &["lammpstrj", "dump"],  Engine::Chemfiles("LAMMPS"),       true,  true,  false, true,      false),
    row("lammps-data",   &["lmp", "data"],        Engine::Chemfiles("LAMMPS Data"),  true,  true,  false, false,     false),
    row("tinker",        &["arc", "txyz"],        Engine::Chemfiles("Tinker"),       true,  true,  false, false,     false),
];

/// A format and, where the file name says so, its compression (`GZ`, `XZ`, `BZ2`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) info: &'static FormatInfo,
    pub(crate) compression: Option<&'static str>,
}

impl Format {
    /// Format of `path` by name if given, else by extension.
    pub(crate) fn of(path: &Path, name: Option<&str>) -> Result<Format> {
        let file = path.file_name().and_then(|f| f.to_str()).unwrap_or_default().to_ascii_lowercase();
        let (stem, compression) = [("gz", "GZ"), ("xz", "XZ"), ("bz2", "BZ2")]
            .iter()
            .find_map(|(ext, name)| Some((file.strip_suffix(ext)?.strip_suffix('.')?, Some(*name))))
            .unwrap_or((&file, None));
        let found = match name {
            Some(name) => FORMATS
                .iter()
                .find(|f| f.name.eq_ignore_ascii_case(name) || matches!(f.engine, Engine::Chemfiles(c) if c.eq_ignore_ascii_case(name))),
            None => stem.rsplit_once('.').and_then(|(_, ext)| FORMATS.iter().find(|f| f.extensions.contains(&ext))),
        };
        let known = || FORMATS.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
        let Some(info) = found else {
            return Err(match name {
                Some(name) => IoError::format(path, format!("there is no format `{name}`"), format!("Known are {}", known())),
                None => IoError::format(
                    path,
                    "the file name does not end in a known extension",
                    format!("Rename it or name its format: {}", known()),
                ),
            });
        };
        if compression.is_some() && !info.text {
            return Err(IoError::format(path, format!("{} files are not read or written compressed", info.name), "Decompress it first"));
        }
        Ok(Format { info, compression })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_extension_and_by_name() {
        let of = |path: &str, name: Option<&str>| {
            Format::of(Path::new(path), name).map(|f| (f.info.name, f.compression)).map_err(|e| e.to_string())
        };
        assert_eq!(of("a/b.pdb", None), Ok(("pdb", None)));
        assert_eq!(of("a/B.PDB.gz", None), Ok(("pdb", Some("GZ"))));
        assert_eq!(of("x", Some("Amber NetCDF")), Ok(("netcdf", None)));
        assert_eq!(of("x.pdb", Some("xyz")), Ok(("xyz", None)));
        assert!(of("x", None).unwrap_err().contains("extension"));
        assert!(of("x.gz", None).is_err());
        assert!(of("x.dcd.gz", None).unwrap_err().contains("Decompress"));
        assert!(of("x.pdb", Some("docx")).unwrap_err().contains("no format `docx`"));
    }
}
