//! The course of a training, whatever is trained: its files, its steps, looks at held-out data, metrics and checkpoints.

use super::{
    Header, METRICS_FILE, MODEL_FILE, PLOT_FILE, RECIPE_FILE, Request, STATE_FILE, SUMMARY_FILE, absolute, directory, prepare_directory,
};
use crate::checkpoint::InputFile;
use crate::error::{Error, Result};
use crate::io::table::{Field, TableWriter};
use crate::io::write_atomically;
use crate::report::plots::{LinePlot, Series, line_plot};
use crate::report::progress::Progress;
use crate::runtime::{Outcome, Runtime, print};
use crate::signals::Interrupt;
use scorefield_integrators::DType;
use scorefield_integrators::simd;
use scorefield_models::train::StateFile;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Steps in a row without a finite loss after which training stops.
const MOST_SKIPPED: u64 = 20;

/// What a training is a function of, beside its recipe.
pub(super) struct Origin {
    pub(super) dtype: DType,
    pub(super) seed: u64,
    /// Hash of the data, and the files they were read from.
    pub(super) data: String,
    pub(super) inputs: Vec<InputFile>,
}

/// What a training writes, and since when.
pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) out: PathBuf,
    pub(super) metrics: TableWriter,
    pub(super) started: Instant,
    /// Step that this process began with.
    pub(super) first: u64,
    pub(super) runtime: &'a Runtime,
}

impl<'a> Record<'a> {
    /// Makes the files of a new training, or goes on with those of the one that was `recorded`: `restore` takes its state and says at
    /// which step it was.
    pub(super) fn open(
        request: &Request,
        recorded: Option<(Header, StateFile)>,
        origin: Origin,
        columns: &'static [&'static str],
        runtime: &'a Runtime,
        restore: impl FnOnce(StateFile, &Path) -> Result<u64>,
    ) -> Result<Self> {
        let out = directory(&request.recipe);
        let mut header = Header {
            version: env!("CARGO_PKG_VERSION").into(),
            recipe: request.recipe.clone(),
            folder: request.folder.clone(),
            command: request.command.clone(),
            isa: simd::current_isa(),
            dtype: origin.dtype,
            seed: origin.seed,
            data: origin.data,
            inputs: origin.inputs,
            metrics: 0,
            best: None,
        };
        let mut first = 0;
        let metrics = match recorded {
            None => {
                prepare_directory(&out, request.overwrite)?;
                let text = toml::to_string(&absolute(&request.recipe, &request.folder)).map_err(|e| Error::Run(e.to_string()))?;
                write_atomically(&out.join(RECIPE_FILE), |w| w.write_all(text.as_bytes()))?;
                TableWriter::create(out.join(METRICS_FILE), columns, request.overwrite)?
            }
            Some((old, state)) => {
                let path = out.join(STATE_FILE);
                if old.data != header.data {
                    let what = "the training data are others than when the training began; restore the files".into();
                    return Err(Error::Checkpoint { path, what });
                }
                first = restore(state, &path)?;
                (header.metrics, header.best, header.command) = (old.metrics, old.best, old.command);
                TableWriter::resume(out.join(METRICS_FILE), columns, header.metrics)?
            }
        };
        Ok(Record { header, out, metrics, started: Instant::now(), first, runtime })
    }

    /// Writes a row of metrics.
    pub(super) fn row(&mut self, row: &[Field]) -> Result<()> {
        self.metrics.row(row)?;
        self.metrics.flush()?;
        Ok(())
    }

    /// Writes the state that `save` makes of the header.
    pub(super) fn write_state(&mut self, save: impl FnOnce(Value) -> Result<StateFile>) -> Result<()> {
        self.header.metrics = self.metrics.flush()?;
        let header = serde_json::to_value(&self.header).map_err(|e| Error::Run(e.to_string()))?;
        let bytes = save(header)?.to_bytes()?;
        Ok(write_atomically(&self.out.join(STATE_FILE), |w| w.write_all(&bytes))?)
    }

    /// All rows of metrics, also of the processes before.
    pub(super) fn rows(&self) -> Result<Vec<Value>> {
        let path = self.out.join(METRICS_FILE);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
        Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
    }

    /// Draws columns over steps; those that are empty are left out. `series` are names and columns.
    pub(super) fn plot(&self, rows: &[Value], title: &str, y_label: &str, series: &[(&str, &str)]) -> Result<()> {
        let curve = |(name, key): &(&str, &str)| Series {
            name: (*name).into(),
            points: rows.iter().filter_map(|r| Some((r["step"].as_f64()?, r[*key].as_f64()?))).collect(),
            errors: Vec::new(),
        };
        let plot = line_plot(&LinePlot {
            title: title.into(),
            x_label: "step".into(),
            y_label: y_label.into(),
            series: series.iter().map(curve).filter(|s| !s.points.is_empty()).collect(),
            log_y: true,
            ..LinePlot::default()
        });
        Ok(write_atomically(&self.out.join(PLOT_FILE), |w| w.write_all(plot.as_bytes()))?)
    }

    /// Writes the summary, with what is known of every training added, and prints `words` and where the files are.
    pub(super) fn summarise(&self, mut summary: Value, words: &str) -> Result<()> {
        let header = &self.header;
        let known = [
            ("version", header.version.clone().into()),
            ("command", header.command.clone().into()),
            ("seed", header.seed.into()),
            ("isa", serde_json::json!(header.isa)),
            ("dtype", serde_json::json!(header.dtype)),
            ("threads", self.runtime.threads().into()),
            ("seconds", self.started.elapsed().as_secs_f64().into()),
            ("data", header.data.clone().into()),
        ];
        for (key, value) in known {
            summary[key] = value;
        }
        write_atomically(&self.out.join(SUMMARY_FILE), |w| writeln!(w, "{summary:#}"))?;
        let (model, plot) = (self.out.join(MODEL_FILE), self.out.join(PLOT_FILE));
        print(format_args!("{words}\nmodel: {}\nplot:  {}", model.display(), plot.display())).map_err(|e| Error::Run(e.to_string()))
    }
}

/// A training that leaves out steps whose losses are not finite, and stops after too many of them.
pub(super) trait Course<'a> {
    /// What was found on held-out data.
    type Validation;
    /// Steps between rows of metrics and between looks at held-out data, unless the recipe says otherwise.
    const INTERVALS: [u64; 2];

    fn record(&self) -> &Record<'a>;
    /// Steps in all.
    fn steps(&self) -> u64;
    fn step(&self) -> u64;
    fn is_done(&self) -> bool;
    /// Learning rate of the next step.
    fn rate(&self) -> f64;
    /// Makes a step; false where its loss was not finite.
    fn advance(&mut self) -> Result<bool>;
    /// Looks at held-out data; `None` where there are none.
    fn validate(&mut self) -> Result<Option<Self::Validation>>;
    /// Writes a row of metrics over `steps` that took `seconds`.
    fn log(&mut self, rate: f64, steps: u64, seconds: f64, validation: Option<&Self::Validation>) -> Result<()>;
    /// Writes the state and the model.
    fn save(&mut self) -> Result<()>;
    /// Says what is trained on what.
    fn describe(&self);
    /// Plot, summary, and a word on what came out.
    fn finish(&mut self) -> Result<()>;
}

/// Trains to the end, or until interrupted; leaves a state either way.
pub(super) fn run<'a>(course: &mut impl Course<'a>, interrupt: &Interrupt) -> Result<Outcome> {
    course.describe();
    let outcome = advance(course, interrupt)?;
    match outcome {
        Outcome::Interrupted => say_interrupted(course.record(), course.step(), course.steps()),
        Outcome::Done => course.finish()?,
    }
    Ok(outcome)
}

/// How to go on.
pub(super) fn say_interrupted(record: &Record<'_>, step: u64, steps: u64) {
    record
        .runtime
        .warn(format_args!("interrupted at step {step} of {steps}; go on with: scorefield train --resume {}", record.out.display()));
}

fn advance<'a, C: Course<'a>>(course: &mut C, interrupt: &Interrupt) -> Result<Outcome> {
    let Record { header, first, runtime, .. } = course.record();
    let output = header.recipe.output.clone();
    let (first, steps) = (*first, course.steps());
    let mut progress = Progress::new(steps, first, 1, None, runtime.quiet);
    let log_every = output.log_every.unwrap_or(C::INTERVALS[0]).max(1);
    let validate_every = output.validate_every.unwrap_or(C::INTERVALS[1]).max(1);
    let minutes = output.checkpoint_minutes.unwrap_or(5.0);
    let checkpoint_every = output.checkpoint_every.unwrap_or(0);
    let mut saved = Instant::now();
    let mut logged = (Instant::now(), first);
    let mut skipped = 0;
    loop {
        if interrupt.requested() || course.is_done() {
            progress.finish();
            course.save()?;
            return Ok(if course.is_done() { Outcome::Done } else { Outcome::Interrupted });
        }
        let rate = course.rate();
        skipped = if course.advance()? { 0 } else { skipped + 1 };
        let step = course.step();
        if skipped >= MOST_SKIPPED {
            return Err(Error::Run(format!(
                "step {step}: losses were not finite in {skipped} steps in a row; train with a smaller learning-rate"
            )));
        }
        let wanted = step.is_multiple_of(validate_every) || course.is_done();
        let validation = if wanted { course.validate()? } else { None };
        if step.is_multiple_of(log_every) || validation.is_some() {
            course.log(rate, step - logged.1, logged.0.elapsed().as_secs_f64(), validation.as_ref())?;
            logged = (Instant::now(), step);
        }
        let timed = minutes > 0.0 && saved.elapsed().as_secs_f64() >= 60.0 * minutes;
        if checkpoint_every > 0 && step.is_multiple_of(checkpoint_every) || timed {
            course.save()?;
            saved = Instant::now();
        }
        progress.update(step, steps);
    }
}
