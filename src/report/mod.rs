//! What people see of a run: maps, curves and tables.

pub mod consistency;
pub mod free_energy;
pub mod log;
pub mod plots;
pub mod progress;
pub mod shape;
pub mod summary;
mod svg;

/// Whether the terminal's locale can show more than ASCII: the first of `LC_ALL`, `LC_CTYPE` and `LANG` that is set
/// decides, as in POSIX.
pub fn locale_is_utf8() -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty())).is_some_and(|value| {
        let value = value.to_ascii_lowercase();
        value.contains("utf-8") || value.contains("utf8")
    })
}
