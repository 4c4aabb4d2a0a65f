//! Operations beside the grid of [`Op`](crate::cases::Op) × routing × dtype: each family is a file here, and chooses for
//! itself what it makes of a batch.
//!
//! To add one: write a file with a function `family`, which names its operations and makes one of them ready to be run,
//! and add it to the backends that have the operations ([`Measurable`]).

mod builders;
mod choices;
mod fused;
mod quant;
mod router;

use crate::Result;
use crate::cases::Case;
use crate::routing::Ids;
use crate::target::Task;
use moe_core::{Backend, PermuteBackend, Queue};

/// A backend, and the families that it has.
pub trait Measurable: PermuteBackend {
    /// All of them.
    fn families() -> Vec<Family<Self>>;
}

impl Measurable for moe_cpu::Cpu {
    fn families() -> Vec<Family<Self>> {
        vec![fused::family(), builders::family(), choices::family(), router::family(), quant::family()]
    }
}

#[cfg(feature = "cuda")]
impl Measurable for moe_cuda::Cuda {
    fn families() -> Vec<Family<Self>> {
        vec![fused::family(), builders::family(), choices::family(), router::family(), quant::family()]
    }
}

#[cfg(feature = "wgpu")]
impl Measurable for moe_wgpu::Wgpu {
    fn families() -> Vec<Family<Self>> {
        vec![fused::family(), builders::family(), choices::family()]
    }
}

/// Enqueues an operation.
pub type Run<B> = Box<dyn FnMut(&mut Queue<'_, B>) -> Result<()>>;

/// An operation with its buffers, ready to be run.
pub struct Entry<B: Backend> {
    /// What stands as the element type in tables; most often that of the case.
    pub dtype: &'static str,
    /// Bytes that it reads and writes: the copy beside it has half as many to read and half to write.
    pub bytes: usize,
    /// Enqueues it, with nothing but `_into` forms.
    pub run: Run<B>,
}

impl<B: Backend> Entry<B> {
    /// To be timed.
    pub fn task(&mut self) -> Task<'_, B> {
        Task::new(self.bytes.div_ceil(2), |queue| (self.run)(queue))
    }
}

/// Makes an operation of a family ready for a batch; `None` where it does not exist for such rows or routing.
pub type Make<B> = fn(&mut Queue<'_, B>, &'static str, &Case, &Ids) -> Result<Option<Entry<B>>>;

/// Operations that share a file.
pub struct Family<B: Backend> {
    /// Their names on the command line and in tables.
    pub ops: &'static [&'static str],
    /// Makes one of them.
    pub make: Make<B>,
}

/// The names of all operations: the CPU, which is the reference, has them all.
pub fn ops() -> Vec<&'static str> {
    moe_cpu::Cpu::families().iter().flat_map(|family| family.ops).copied().collect()
}

/// Makes an operation of any family ready.
///
/// # Errors
/// What the library says.
pub fn make<B: Measurable>(
    queue: &mut Queue<'_, B>,
    op: &'static str,
    case: &Case,
    ids: &Ids,
) -> Result<Option<Entry<B>>> {
    match B::families().iter().find(|family| family.ops.contains(&op)) {
        Some(family) => (family.make)(queue, op, case, ids),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{Model, Op, RoutingKind, Rows};
    use moe_core::Dev;
    use moe_cpu::Cpu;

    #[test]
    fn no_two_operations_share_a_name() {
        let mut names = ops();
        names.extend(Op::ALL.iter().map(|op| op.name()));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn every_operation_runs_twice_and_counts_its_bytes_where_it_exists() {
        let model = Model { name: "small", hidden: 256, experts: 16, top_k: 2 };
        let mut queue = Dev::<Cpu>::open(&"cpu".parse().unwrap()).unwrap().queue().unwrap();
        for op in ops() {
            let mut found = 0;
            for rows in Rows::ALL {
                let case = Case { model, tokens: 40, rows: *rows, routing: RoutingKind::Uniform };
                let ids = Ids::new(&case, None).unwrap();
                let Some(mut entry) = make(&mut queue, op, &case, &ids).unwrap() else { continue };
                found += 1;
                assert!(entry.bytes > 0, "{op}");
                let mut task = entry.task();
                task.run(&mut queue).unwrap();
                task.run(&mut queue).unwrap();
            }
            assert!(found > 0, "{op} exists for no rows");
        }
    }
}
