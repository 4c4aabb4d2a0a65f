//! A progress bar on a terminal, plain lines elsewhere. Writes to stderr.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

/// Cells of the bar.
const WIDTH: usize = 28;

/// How far a run is.
#[derive(Debug)]
pub struct Progress {
    total: usize,
    done: usize,
    terminal: bool,
    start: Instant,
}

impl Progress {
    /// Of this many steps.
    pub fn new(total: usize) -> Self {
        Self { total, done: 0, terminal: stderr().is_terminal(), start: Instant::now() }
    }

    /// Says what is done now.
    pub fn step(&mut self, what: &str) {
        let seconds = self.start.elapsed().as_secs();
        if self.terminal {
            eprint!("\r\x1b[2K{} {}/{} {seconds}s {what}", bar(self.done, self.total), self.done, self.total);
            let _ = stderr().flush();
        } else {
            eprintln!("[{}/{} {seconds}s] {what}", self.done + 1, self.total);
        }
        self.done += 1;
    }

    /// Prints a line above the bar.
    pub fn note(&self, line: &str) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
        eprintln!("{line}");
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
        eprintln!("{} steps in {} s", self.done, self.start.elapsed().as_secs());
    }
}

fn bar(done: usize, total: usize) -> String {
    let full = (done * WIDTH).checked_div(total).unwrap_or(WIDTH).min(WIDTH);
    format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_never_leaves_its_width() {
        for (done, total, full) in [(0, 0, WIDTH), (0, 9, 0), (9, 9, WIDTH), (12, 9, WIDTH), (1, 2, WIDTH / 2)] {
            let bar = bar(done, total);
            assert_eq!((bar.chars().count(), bar.matches('█').count()), (WIDTH, full));
        }
    }
}
