//! Measures what the backends' knobs are worth on this machine, and writes the table that the oracle reads.
//!
//! For each knob, first every candidate is timed a few times on every operation and batch: where no candidate changes
//! the time, the knob does not matter. On the cells that are left all candidates take turns with the built-in value, which
//! takes part a second time under another name: by how much it differs from itself is what the machine's noise does. A
//! candidate replaces the built-in value if it is faster by more than the spread.

mod cells;
mod verdict;

use crate::args::Args;
use crate::stats::median;
use crate::suite::absent;
use crate::target::{Target, TargetVisitor, with_target};
use crate::{Error, Result};
use cells::Cells;
use moe_core::oracle::{Knob, TuningTable};
use moe_core::{Backend, Device};
use std::path::Path;
use verdict::{Arm, Verdict, judge};

/// Rounds of the first look, and of the comparison.
const LOOK: usize = 5;
const ROUNDS: usize = 15;
/// A cell matters if a candidate changes its time by this part.
const MATTERS: f64 = 0.02;

/// Measures all knobs of the devices that were asked for, and writes the table.
///
/// # Errors
/// If a device that was asked for by name cannot be opened, an operation fails, or the table cannot be written.
pub fn run(args: &Args) -> Result<TuningTable> {
    let path = args.table.clone().unwrap_or_else(|| args.out.join("tuning.txt"));
    let mut tuner = Tuner { args, table: TuningTable::new() };
    for name in args.devices() {
        let result = name.parse().map_err(Error::from).and_then(|spec| with_target(&spec, &mut tuner));
        match result {
            Err(e) if args.backends.is_empty() && absent(&e) => println!("skipped: {name}: {e}"),
            other => other?,
        }
    }
    save(&path, tuner.table.clone())?;
    Ok(tuner.table)
}

/// Writes the table over what the file has of the same keys; other devices keep their sections.
fn save(path: &Path, new: TuningTable) -> Result<()> {
    let mut table = match std::fs::read_to_string(path) {
        Ok(text) => text.parse::<TuningTable>().map_err(|e| format!("{}: {e}", path.display()))?,
        Err(_) => TuningTable::new(),
    };
    table.merge(new);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, table.to_string())?;
    println!("wrote {}; `cargo xtask doctor --table {0}` shows what it changes", path.display());
    Ok(())
}

struct Tuner<'a> {
    args: &'a Args,
    table: TuningTable,
}

impl TargetVisitor for Tuner<'_> {
    fn visit<T: Target>(&mut self, mut target: T) -> Result<()> {
        let knobs = target.raw().knobs();
        let name = target.raw().info().name;
        if knobs.is_empty() {
            println!("{} ({name}): it has no knobs", target.device());
            return Ok(());
        }
        println!("{} ({name}): {}", target.device(), target.method());
        let mut device = OnDevice { backend: T::Backend::NAME, name, chosen: TuningTable::new() };
        let mut cells = Cells::new(self.args, &mut target)?;
        for knob in knobs {
            device.knob(&mut target, &mut cells, knob)?;
        }
        self.table.merge(device.chosen);
        Ok(())
    }
}

/// The values of a device that are chosen so far.
struct OnDevice {
    backend: &'static str,
    name: String,
    chosen: TuningTable,
}

impl OnDevice {
    /// Sets a knob, and those that are decided.
    fn set<T: Target>(&self, target: &T, knob: &Knob, value: usize) -> Result<()> {
        let mut table = self.chosen.clone();
        table.set(self.backend, &self.name, knob, value, "")?;
        Ok(target.raw().tune(&table)?)
    }

    fn knob<T: Target>(&mut self, target: &mut T, cells: &mut Cells<T::Backend>, knob: &Knob) -> Result<()> {
        println!("{} (built in: {}): {}", knob.key, knob.format(knob.built_in), knob.about);
        let mut values = vec![knob.built_in];
        for value in knob.candidates.iter().copied().filter(|value| *value != knob.built_in) {
            match self.set(target, knob, value) {
                Ok(()) => values.push(value),
                Err(error) => println!("  {}: left out: {error}", knob.format(value)),
            }
        }
        let all: Vec<usize> = (0..cells.len()).collect();
        let look = self.compare(target, cells, knob, &values, &all, LOOK)?;
        let matters = |cell: &usize| look.iter().skip(1).any(|arm| median(&arm.cells[*cell]).abs() > MATTERS);
        let matter: Vec<usize> = all.into_iter().filter(matters).collect();
        if matter.is_empty() {
            println!("  no candidate changes any time by more than {:.0} %", MATTERS * 1e2);
            return self.keep(target, knob, "makes no difference");
        }
        let names: Vec<&str> = matter.iter().map(|cell| cells.name(*cell)).collect();
        println!("  matters for {}", names.join(", "));

        // The built-in value takes part twice.
        let mut arms = values.clone();
        arms.push(knob.built_in);
        let mut measured = self.compare(target, cells, knob, &arms, &matter, ROUNDS)?;
        let noise = measured.pop().map(|arm| arm.score()).unwrap_or_default();
        let scores: Vec<_> = measured.iter().map(Arm::score).collect();
        for (value, score) in values.iter().zip(&scores).skip(1) {
            println!("  {}: {score}", knob.format(*value));
        }
        println!("  the built-in value against itself: {noise}");
        match judge(&scores, &noise) {
            Verdict::Keep => self.keep(target, knob, &format!("no other is faster by more than the spread: {noise}")),
            Verdict::Take(best) => {
                let text = format!("{} than the built-in {}", scores[best], knob.format(knob.built_in));
                println!("  taken: {}", knob.format(values[best]));
                self.chosen.set(self.backend, &self.name, knob, values[best], &text)?;
                Ok(target.raw().tune(&self.chosen)?)
            }
        }
    }

    /// The built-in value stays; the table says that it was measured.
    fn keep<T: Target>(&mut self, target: &T, knob: &Knob, why: &str) -> Result<()> {
        println!("  kept");
        self.chosen.set(self.backend, &self.name, knob, knob.built_in, &format!("built in; {why}"))?;
        Ok(target.raw().tune(&self.chosen)?)
    }

    /// Times values of a knob in turns, on some cells: the logarithm of each time over that of the first value in the
    /// same round. Each round begins with another value.
    fn compare<T: Target>(
        &self,
        target: &mut T,
        cells: &mut Cells<T::Backend>,
        knob: &Knob,
        values: &[usize],
        on: &[usize],
        rounds: usize,
    ) -> Result<Vec<Arm>> {
        let mut arms = vec![Arm { cells: vec![Vec::new(); on.len()] }; values.len()];
        for round in 0..rounds {
            for (place, cell) in on.iter().enumerate() {
                let mut times = vec![0.0; values.len()];
                for turn in 0..values.len() {
                    let i = (turn + round) % values.len();
                    self.set(target, knob, values[i])?;
                    times[i] = cells.time(target, *cell)?;
                }
                for (arm, time) in arms.iter_mut().zip(&times) {
                    arm.cells[place].push((time / times[0]).ln());
                }
            }
        }
        Ok(arms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::{Dev, DeviceSpec};
    use moe_cpu::Cpu;

    #[test]
    fn the_table_that_is_written_is_one_that_the_device_takes() {
        let path = std::env::temp_dir().join(format!("moe-tune-{}.txt", std::process::id()));
        std::fs::write(&path, "[other: device]\nsomething 1\n").unwrap();
        // A pool of its own, so that no other test runs with what is tried here.
        let line =
            format!("--tune --backend cpu:43 --models mixtral --tokens 2 --ops gather --table {}", path.display());
        let args = Args::parse(line.split_whitespace().map(str::to_owned)).unwrap();
        run(&args).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(text.contains("[other: device]\nsomething 1\n"), "{text}");
        let table: TuningTable = text.parse().unwrap();
        let device = Dev::<Cpu>::open(&DeviceSpec::new("cpu", Some(43)).unwrap()).unwrap();
        device.raw().tune(&table).unwrap();
        for knob in device.raw().knobs() {
            let entry = table.entry("cpu", &device.info().name, knob.key).unwrap_or_else(|| panic!("{text}"));
            assert!(!entry.measurement.is_empty());
        }
    }
}
