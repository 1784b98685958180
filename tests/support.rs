//! Running the program and comparing what it wrote; an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

/// The program with some arguments; its working directory is the repository.
pub(crate) fn scorefield(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scorefield"));
    command.args(args);
    command
}

/// Runs the program to its end. It must not panic, whatever it is given.
pub(crate) fn run(args: &[&str]) -> Output {
    finish(&mut scorefield(args))
}

/// Runs a command to its end. It must not panic, whatever it is given.
pub(crate) fn finish(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(!error(&output).contains("panicked"), "{command:?}: {}", error(&output));
    output
}

/// What a run wrote to stderr.
pub(crate) fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program, which must succeed; returns what it printed.
pub(crate) fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", error(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, which must fail with `code` and say all of `parts`.
pub(crate) fn fail(args: &[&str], code: i32, parts: &[&str]) {
    let output = run(args);
    let message = error(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{args:?} does not say `{part}`: {message}");
    }
}

/// Contents of the files of a run that must be the same bytes however it was cut into pieces.
pub(crate) fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let kept =
        |name: &str| ["log", "trajectory", "free-energy", "structure", "colvar", "hills", "bias"].iter().any(|p| name.starts_with(p));
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| kept(name))
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect()
}

/// Asserts that two runs wrote the same bytes.
pub(crate) fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    assert!(a.len() >= 2, "nothing to compare");
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        let other = &b[name];
        let first = bytes.iter().zip(other).position(|(x, y)| x != y);
        assert!(bytes == other, "{name}: {} and {} bytes, first difference at {first:?}", bytes.len(), other.len());
    }
}

/// Counts allocations per thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}
