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
    /// Our own LAMMPS dumps.
    Dump,
    /// Our own readers; chemfiles, under this name of its own, writes.
    Own(Own, &'static str),
}

/// Formats that chemfiles writes and we read: its C++ readers crash or hang on corrupt files, and leave out charges, cells and bonds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    Pdb,
    Mmcif,
    Sdf,
    Mol2,
    Gro,
    Xtc,
    Trr,
    Netcdf,
    LammpsData,
}

impl Engine {
    /// chemfiles' name.
    pub(crate) fn chemfiles(self) -> &'static str {
        match self {
            Engine::Xyz => "XYZ",
            Engine::Dcd => "DCD",
            Engine::Dump => "LAMMPS",
            Engine::Own(_, name) => name,
        }
    }
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
    trajectory: bool,
    cut: bool,
) -> FormatInfo {
    FormatInfo { name, extensions, engine, text, topology, trajectory, cut }
}

#[rustfmt::skip]
const FORMATS: &[FormatInfo] = &[
    //  name             extensions               engine                             text   topology trajectory cut
    row("xyz",           &["xyz"],                Engine::Xyz,                       true,  true, true,      true),
    row("extxyz",        &["extxyz"],             Engine::Xyz,                       true,  true, true,      true),
    row("dcd",           &["dcd"],                Engine::Dcd,                       false, false, true,      true),
    row("pdb",           &["pdb", "ent"],         Engine::Own(Own::Pdb, "PDB"),          true,  true, false,      false),
    row("mmcif",         &["cif", "mmcif"],       Engine::Own(Own::Mmcif, "mmCIF"),        true,  true, false,     false),
    row("sdf",           &["sdf", "mol", "sd"],   Engine::Own(Own::Sdf, "SDF"),          true,  true, false,     false),
    row("mol2",          &["mol2"],               Engine::Own(Own::Mol2, "MOL2"),         true,  true, false,     false),
    row("gro",           &["gro"],                Engine::Own(Own::Gro, "GRO"),          true,  true, false,     false),
    row("xtc",           &["xtc"],                Engine::Own(Own::Xtc, "XTC"),          false, false, true,      true),
    row("trr",           &["trr"],                Engine::Own(Own::Trr, "TRR"),          false, false, true,      true),
    row("netcdf",        &["nc"],                 Engine::Own(Own::Netcdf, "Amber NetCDF"), false, false, true,      false),
    row("lammps",        &["lammpstrj", "dump"],  Engine::Dump,       true,  true, true,      true),
    row("lammps-data",   &["lmp", "data"],        Engine::Own(Own::LammpsData, "LAMMPS Data"),  true,  true, false,     false),
];

/// The format of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) info: &'static FormatInfo,
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
            Some(name) => FORMATS.iter().find(|f| f.name.eq_ignore_ascii_case(name) || f.engine.chemfiles().eq_ignore_ascii_case(name)),
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
        if let Some(compression) = compression {
            return Err(IoError::format(path, format!("{compression} compression is not read or written"), "Decompress it first"));
        }
        Ok(Format { info })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_extension_and_by_name() {
        let of = |path: &str, name: Option<&str>| Format::of(Path::new(path), name).map(|f| f.info.name).map_err(|e| e.to_string());
        assert_eq!(of("a/b.pdb", None), Ok("pdb"));
        assert_eq!(of("a/B.PDB", None), Ok("pdb"));
        assert!(of("a/b.pdb.gz", None).unwrap_err().contains("Decompress"));
        assert_eq!(of("x", Some("Amber NetCDF")), Ok("netcdf"));
        assert_eq!(of("x.pdb", Some("xyz")), Ok("xyz"));
        assert!(of("x", None).unwrap_err().contains("extension"));
        assert!(of("x.gz", None).is_err());
        assert!(of("x.dcd.gz", None).unwrap_err().contains("Decompress"));
        assert!(of("x.pdb", Some("docx")).unwrap_err().contains("no format `docx`"));
    }
}
