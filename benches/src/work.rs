//! The buffers of a case on a device, and its operations in their `_into` forms: nothing is allocated once it is made.

use crate::Result;
use crate::cases::{Case, Op, Rows, SCALE_BLOCK};
use crate::routing::Ids;
use crate::target::Task;
use moe_core::float8::F8E4M3;
use moe_core::half::{bf16, f16};
use moe_core::{Backend, Buf, Element, Float, Limits, PermuteBackend, PlanSpec, Queue, RoutePlan, Routing, Workspace};

/// What all operations of a case share.
struct Common<B: Backend> {
    case: Case,
    spec: PlanSpec,
    workspace: Workspace<B>,
    plan: RoutePlan<B>,
    ids: Buf<B, i32>,
    expert_map: Option<Buf<B, i32>>,
    weights: Buf<B, f32>,
}

impl<B: Backend> Common<B> {
    fn routing<'a>(ids: &'a Buf<B, i32>, expert_map: Option<&'a Buf<B, i32>>) -> Routing<'a, B> {
        let routing = Routing::top_k(ids.view());
        match expert_map {
            Some(map) => routing.expert_map(map.view()),
            None => routing,
        }
    }
}

/// Rows of one element type.
trait Data<B: PermuteBackend> {
    fn run(&mut self, op: Op, common: &mut Common<B>, queue: &mut Queue<'_, B>) -> Result<()>;
}

/// Rows of floats.
struct FloatRows<B: Backend, T: Float> {
    tokens: Buf<B, T>,
    rows: Buf<B, T>,
    rows_out: Buf<B, T>,
    tokens_out: Buf<B, T>,
    grad_weights: Buf<B, f32>,
}

impl<B: PermuteBackend, T: Float> Data<B> for FloatRows<B, T> {
    fn run(&mut self, op: Op, common: &mut Common<B>, queue: &mut Queue<'_, B>) -> Result<()> {
        let cols = common.case.model.hidden;
        let Common { plan, weights, .. } = common;
        match op {
            Op::Plan => build(common, queue)?,
            Op::Gather => plan.gather(self.tokens.rows(cols)?).run_into(queue, self.rows_out.rows_mut(cols)?)?,
            Op::Permute => permute(common, queue, &self.tokens, &mut self.rows_out)?,
            Op::Combine => {
                let combine = plan.combine(self.rows.rows(cols)?).weights(weights.view());
                combine.run_into(queue, self.tokens_out.rows_mut(cols)?)?;
            }
            Op::CombineGrad => {
                let grad = plan.combine_grad(self.tokens.rows(cols)?).weights(weights.view());
                let (rows, dw) = (self.rows_out.rows_mut(cols)?, self.grad_weights.view_mut());
                grad.rows(self.rows.rows(cols)?).run_into(queue, Some(rows), Some(dw))?;
            }
        }
        Ok(())
    }
}

/// Rows of 8-bit floats with their scales.
struct ScaledRows<B: Backend> {
    tokens: Buf<B, F8E4M3>,
    token_scales: Buf<B, f32>,
    rows: Buf<B, F8E4M3>,
    row_scales: Buf<B, f32>,
    rows_out: Buf<B, F8E4M3>,
    row_scales_out: Buf<B, f32>,
    tokens_out: Buf<B, bf16>,
}

impl<B: PermuteBackend> Data<B> for ScaledRows<B> {
    fn run(&mut self, op: Op, common: &mut Common<B>, queue: &mut Queue<'_, B>) -> Result<()> {
        let cols = common.case.model.hidden;
        let scales = cols.div_ceil(SCALE_BLOCK);
        match op {
            Op::Plan => return build(common, queue),
            Op::Gather => {
                let gather = common.plan.gather(self.tokens.rows(cols)?);
                gather.run_into(queue, self.rows_out.rows_mut(cols)?)?;
            }
            Op::Permute => permute(common, queue, &self.tokens, &mut self.rows_out)?,
            Op::Combine => {
                let combine = common.plan.combine(self.rows.rows(cols)?).weights(common.weights.view());
                let combine = combine.scales(self.row_scales.rows(scales)?, SCALE_BLOCK);
                combine.run_into(queue, self.tokens_out.rows_mut(cols)?)?;
                return Ok(());
            }
            Op::CombineGrad => return Err("8-bit rows have no gradient".into()),
        }
        let gather = common.plan.gather(self.token_scales.rows(scales)?);
        Ok(gather.run_into(queue, self.row_scales_out.rows_mut(scales)?)?)
    }
}

fn build<B: PermuteBackend>(common: &mut Common<B>, queue: &mut Queue<'_, B>) -> Result<()> {
    let Common { plan, workspace, spec, ids, expert_map, .. } = common;
    Ok(plan.build_into(queue, workspace, *spec, Common::routing(ids, expert_map.as_ref()))?)
}

fn permute<B: PermuteBackend, T: Element>(
    common: &mut Common<B>,
    queue: &mut Queue<'_, B>,
    tokens: &Buf<B, T>,
    rows_out: &mut Buf<B, T>,
) -> Result<()> {
    let cols = common.case.model.hidden;
    let Common { plan, workspace, spec, ids, expert_map, .. } = common;
    let routing = Common::routing(ids, expert_map.as_ref());
    Ok(plan.permute_into(queue, workspace, *spec, routing, tokens.rows(cols)?, rows_out.rows_mut(cols)?)?)
}

/// A case on a device, ready to be run.
pub struct Work<B: PermuteBackend> {
    common: Common<B>,
    data: Box<dyn Data<B>>,
    bytes: [usize; Op::ALL.len()],
}

impl<B: PermuteBackend> Work<B> {
    /// Allocates everything and builds the plan.
    ///
    /// # Errors
    /// What the library says.
    pub fn new(queue: &mut Queue<'_, B>, case: Case, ids: &Ids) -> Result<Self> {
        let (tokens, routes) = (case.tokens, case.routes());
        let (experts, top_k, hidden) = (case.model.experts, case.model.top_k, case.model.hidden);
        let spec = PlanSpec::new(tokens, top_k, experts).local_experts(case.local_experts());
        let limits = Limits::new(tokens, top_k, experts);
        let mut common = Common {
            case,
            spec,
            workspace: Workspace::new(queue, limits)?,
            plan: RoutePlan::alloc(queue, spec)?,
            ids: queue.upload(&ids.ids)?,
            expert_map: ids.expert_map.as_ref().map(|map| queue.upload(map)).transpose()?,
            weights: queue.upload(&vec![1.0 / top_k as f32; routes])?,
        };
        build(&mut common, queue)?;
        let data: Box<dyn Data<B>> = match case.rows {
            Rows::Bf16 => Box::new(FloatRows::<B, bf16>::new(queue, tokens, routes, hidden)?),
            Rows::F16 => Box::new(FloatRows::<B, f16>::new(queue, tokens, routes, hidden)?),
            Rows::F32 => Box::new(FloatRows::<B, f32>::new(queue, tokens, routes, hidden)?),
            Rows::F8 => {
                let scales = hidden.div_ceil(SCALE_BLOCK);
                Box::new(ScaledRows {
                    tokens: filled(queue, tokens * hidden, F8E4M3::from_f32)?,
                    token_scales: filled(queue, tokens * scales, |x| x)?,
                    rows: filled(queue, routes * hidden, F8E4M3::from_f32)?,
                    row_scales: filled(queue, routes * scales, |x| x)?,
                    rows_out: queue.zeros(routes * hidden)?,
                    row_scales_out: queue.zeros(routes * scales)?,
                    tokens_out: queue.zeros(tokens * hidden)?,
                })
            }
        };
        queue.synchronize()?;
        let mut bytes = [0; Op::ALL.len()];
        for op in Op::ALL {
            bytes[*op as usize] = case.bytes(*op, ids.local_routes, ids.local_tokens);
        }
        Ok(Self { common, data, bytes })
    }

    /// What it is.
    pub fn case(&self) -> &Case {
        &self.common.case
    }

    /// The bytes that an operation reads and writes.
    pub fn bytes(&self, op: Op) -> usize {
        self.bytes[op as usize]
    }

    /// The length of the copy that moves the same bytes: half of them are read, half are written. A permute's copy is
    /// that of its rows: the index arrays are a thousandth of them, and make a length that a GPU's driver copies at two
    /// thirds of the speed.
    pub fn copy_len(&self, op: Op) -> usize {
        let op = if op == Op::Permute { Op::Gather } else { op };
        self.bytes(op).div_ceil(2)
    }

    /// An operation, to be timed.
    pub fn task(&mut self, op: Op) -> Task<'_, B> {
        Task::new(self.copy_len(op), move |queue| self.run(op, queue))
    }

    /// Enqueues an operation.
    ///
    /// # Errors
    /// What the library says.
    pub fn run(&mut self, op: Op, queue: &mut Queue<'_, B>) -> Result<()> {
        self.data.run(op, &mut self.common, queue)
    }
}

impl<B: Backend, T: Float> FloatRows<B, T> {
    fn new(queue: &mut Queue<'_, B>, tokens: usize, routes: usize, hidden: usize) -> Result<Self> {
        Ok(Self {
            tokens: filled(queue, tokens * hidden, T::from_f32)?,
            rows: filled(queue, routes * hidden, T::from_f32)?,
            rows_out: queue.zeros(routes * hidden)?,
            tokens_out: queue.zeros(tokens * hidden)?,
            grad_weights: queue.zeros(routes)?,
        })
    }
}

/// Values between -1 and 1 that repeat after an odd number of elements, so that rows differ.
pub(crate) fn filled<B: Backend, T: Element>(
    queue: &mut Queue<'_, B>,
    len: usize,
    from: impl Fn(f32) -> T,
) -> Result<Buf<B, T>> {
    const TILE: usize = (1 << 16) + 1;
    let tile: Vec<T> = (0..TILE.min(len)).map(|i| from((i * 37 % 201) as f32 / 100.0 - 1.0)).collect();
    let mut buf = queue.zeros(len)?;
    for start in (0..len).step_by(TILE) {
        let part = start..len.min(start + TILE);
        queue.write(&tile[..part.len()], buf.view_mut().slice(part)?)?;
    }
    Ok(buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{Model, RoutingKind};
    use moe_core::Dev;
    use moe_cpu::Cpu;

    fn small(rows: Rows, routing: RoutingKind) -> Work<Cpu> {
        let model = Model { name: "small", hidden: 256, experts: 16, top_k: 2 };
        let case = Case { model, tokens: 40, rows, routing };
        let mut queue = Dev::<Cpu>::open(&"cpu".parse().unwrap()).unwrap().queue().unwrap();
        let mut work = Work::new(&mut queue, case, &Ids::new(&case, None).unwrap()).unwrap();
        for op in Op::ALL.iter().filter(|op| case.has(**op)) {
            work.run(*op, &mut queue).unwrap();
        }
        work
    }

    #[test]
    fn every_operation_runs_for_every_dtype_and_routing() {
        for rows in Rows::ALL {
            for routing in [RoutingKind::Uniform, RoutingKind::AllToOne, RoutingKind::Ep8] {
                small(*rows, routing);
            }
        }
    }

    #[test]
    fn what_is_timed_places_the_routes_that_the_byte_count_assumes() {
        let mut queue = Dev::<Cpu>::open(&"cpu".parse().unwrap()).unwrap().queue().unwrap();
        let work = small(Rows::Bf16, RoutingKind::Ep8);
        let counts = queue.download(work.common.plan.tokens_per_expert()).unwrap();
        let ids = Ids::new(work.case(), None).unwrap();
        assert_eq!(counts.iter().sum::<i32>() as usize, ids.local_routes);
        assert_eq!(work.bytes(Op::Gather), (ids.local_routes + ids.local_tokens) * 512);
    }
}
