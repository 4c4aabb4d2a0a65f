//! The operations and batches that knobs are measured on.

use crate::Result;
use crate::args::Args;
use crate::cases::{Case, Op, RoutingKind};
use crate::extras::Measurable;
use crate::routing::Ids;
use crate::target::Target;
use crate::work::Work;

/// Batches on a device, each with operations.
pub(super) struct Cells<B: Measurable> {
    works: Vec<Work<B>>,
    /// Which batch, which operation, and the name for people.
    cells: Vec<(usize, Op, String)>,
}

impl<B: Measurable> Cells<B> {
    /// What the arguments ask for, as far as memory allows.
    pub(super) fn new<T: Target<Backend = B>>(args: &Args, target: &mut T) -> Result<Self> {
        let (mut works, mut cells) = (Vec::new(), Vec::new());
        let mut room = target.memory_limit();
        for model in &args.models {
            for rows in &args.dtypes {
                for tokens in &args.tokens {
                    let case = Case { model: *model, tokens: *tokens, rows: *rows, routing: RoutingKind::Uniform };
                    let ops: Vec<Op> = args.ops.iter().copied().filter(|op| case.has(*op)).collect();
                    let case = case.without_idle_rows(&ops);
                    let Some(left) = room.checked_sub(case.memory(&ops)) else {
                        println!("left out: {case}: memory");
                        continue;
                    };
                    room = left;
                    for op in ops {
                        let name = format!("{op} {} {} T={tokens}", model.name, rows.name());
                        cells.push((works.len(), op, name));
                    }
                    works.push(Work::new(target.queue(), case, &Ids::new(&case, None)?)?);
                }
            }
        }
        if cells.is_empty() {
            return Err("nothing to measure on".into());
        }
        Ok(Self { works, cells })
    }

    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(super) fn name(&self, cell: usize) -> &str {
        &self.cells[cell].2
    }

    /// Microseconds of a sample.
    pub(super) fn time<T: Target<Backend = B>>(&mut self, target: &mut T, cell: usize) -> Result<f64> {
        let (work, op, _) = &self.cells[cell];
        target.sample(&mut self.works[*work].task(*op))
    }
}
