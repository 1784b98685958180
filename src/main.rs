//! The `scorefield` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Replicas are parallel outside, so the libraries inside stay on one thread; candle reads the third flag once per
    // thread, and without it its second backward is silently wrong.
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS", "CANDLE_GRAD_DO_NOT_DETACH"] {
        // SAFETY: no other thread exists yet.
        unsafe { std::env::set_var(name, "1") };
    }
    scorefield::cli::main(std::env::args_os())
}
