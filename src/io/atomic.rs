//! Whole files appear whole or not at all: written beside their place, synced, renamed.

use super::error::{IoError, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `path` through `write` so that readers and crashes see the old file or the new one, never a part. Devices and
/// pipes are written to as they are: a rename would put a file in their place. A link stays, and its target is replaced.
///
/// # Errors
/// [`IoError::File`] naming the path; the old file is untouched and nothing is left behind.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let fail = |e| IoError::file("write", path, e);
    if is_special(path) {
        let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
        let mut writer = BufWriter::with_capacity(1 << 16, file);
        return write(&mut writer).and_then(|()| writer.flush()).map_err(fail);
    }
    let temporary = Temporary::beside(path)?;
    let file = OpenOptions::new().write(true).truncate(true).open(temporary.path()).map_err(fail)?;
    let mut writer = BufWriter::with_capacity(1 << 16, file);
    write(&mut writer).and_then(|()| writer.flush()).map_err(fail)?;
    temporary.commit()
}

/// True for what is there and is neither a file nor a directory, seen through links.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// A new empty file in the directory of the file that it will become; removed unless committed.
pub(crate) struct Temporary {
    target: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl Temporary {
    pub(crate) fn beside(target: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let fail = |e| IoError::file("write", target, e);
        if target.is_dir() {
            return Err(IoError::path(target, "it is a directory", "Name a file in it"));
        }
        if is_special(target) {
            return Err(IoError::path(target, "it is a device or a pipe, and this format is written by name", "Name a file"));
        }
        let target = &fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let Some(name) = target.file_name() else {
            return Err(IoError::path(target, "it does not name a file", "Give the name of the file to write"));
        };
        // The extension stays last: some libraries choose a format by it.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = target.with_file_name(format!(".{}-{number}.part.{}", std::process::id(), name.to_string_lossy()));
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(fail)?;
        Ok(Temporary { target: target.to_owned(), path, committed: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the content and puts the file in its place.
    pub(crate) fn commit(mut self) -> Result<()> {
        let fail = |e| IoError::file("write", &self.target, e);
        File::open(&self.path).and_then(|f| f.sync_all()).map_err(fail)?;
        fs::rename(&self.path, &self.target).map_err(fail)?;
        self.committed = true;
        sync_directory(&self.target);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a rename or a new file in `path`'s directory last through a power cut, where the file system can.
pub(crate) fn sync_directory(path: &Path) {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Some file systems refuse to sync directories; the content itself is synced.
    let _ = File::open(directory).and_then(|d| d.sync_all());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomically(&path, |w| w.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |w| {
            w.write_all(b"new")?;
            Err(io::Error::other("no"))
        });
        assert!(failed.unwrap_err().to_string().contains("a.txt"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write_atomically(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary files stay");
        assert!(write_atomically(&dir.path().join("no/such"), |_| Ok(())).unwrap_err().to_string().contains("no/such"));
        assert!(write_atomically(dir.path(), |_| Ok(())).unwrap_err().to_string().contains("directory"));
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay() {
        let dir = tempfile::tempdir().unwrap();
        let link = |target: &str| {
            let path = dir.path().join("link");
            let _ = fs::remove_file(&path);
            std::os::unix::fs::symlink(target, &path).unwrap();
            path
        };
        fs::write(dir.path().join("target"), "old").unwrap();
        let path = link("target");
        write_atomically(&path, |w| w.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert_eq!(fs::read(dir.path().join("target")).unwrap(), b"new");
        let path = link("/dev/null");
        write_atomically(&path, |w| w.write_all(b"gone")).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(Temporary::beside(&path).is_err());
    }
}
