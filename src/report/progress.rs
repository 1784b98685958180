//! The progress bar: steps per second, ns per day and time left; on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shows how far a run is. Hidden (and free of cost) where stderr is no terminal or nobody wants to see it.
pub struct Progress {
    bar: Option<ProgressBar>,
    replicas: usize,
    /// ns per step, where a step is a time.
    ns_per_step: Option<f64>,
    start: Instant,
    first_step: u64,
    drawn: Instant,
}

/// Shortest time between two drawings.
const REFRESH: Duration = Duration::from_millis(200);

impl Progress {
    /// A bar from `first_step` to `steps`; `dt` in ps where steps are physical time.
    pub fn new(steps: u64, first_step: u64, replicas: usize, dt: Option<f64>, quiet: bool) -> Self {
        let visible = !quiet && std::io::stderr().is_terminal();
        let bar = visible.then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}") {
                bar.set_style(style);
            }
            bar.set_position(first_step);
            bar
        });
        let now = Instant::now();
        Progress { bar, replicas, ns_per_step: dt.map(|dt| dt * 1e-3), start: now, first_step, drawn: now }
    }

    /// Notes that `step` steps of `steps` are done.
    pub fn update(&mut self, step: u64, steps: u64) {
        let Some(bar) = &self.bar else { return };
        let now = Instant::now();
        if now - self.drawn < REFRESH && step < steps {
            return;
        }
        self.drawn = now;
        let elapsed = (now - self.start).as_secs_f64();
        let rate = (step - self.first_step) as f64 / elapsed;
        let left = indicatif::HumanDuration(Duration::try_from_secs_f64((steps - step) as f64 / rate).unwrap_or_default());
        let speed = speed(rate * self.replicas as f64, self.ns_per_step);
        bar.set_message(format!("{speed}, {left:#} left"));
        bar.set_position(step);
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// `1.2 M steps/s, 103 ns/day` for `rate` system-steps per second.
pub fn speed(rate: f64, ns_per_step: Option<f64>) -> String {
    let (value, prefix) = match rate {
        r if r >= 1e6 => (r * 1e-6, " M"),
        r if r >= 1e3 => (r * 1e-3, " k"),
        r => (r, ""),
    };
    let steps = format!("{value:.3}{prefix} steps/s");
    match ns_per_step {
        Some(ns) => format!("{steps}, {:.1} ns/day", rate * ns * 86_400.0),
        None => steps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_readable() {
        assert_eq!(speed(1.234e6, Some(1e-6)), "1.234 M steps/s, 106617.6 ns/day");
        assert_eq!(speed(250.0, None), "250.000 steps/s");
    }
}
