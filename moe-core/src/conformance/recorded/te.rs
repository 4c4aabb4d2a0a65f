//! Recorded answers of TransformerEngine's Triton kernels on an H200.
//!
//! Its fields, and what they are here:
//!
//! | TransformerEngine | here |
//! |---|---|
//! | `routing_map` i32 `[T, E]`, `probs` f32 `[T, E]` | the mask map and its probabilities, as they are; K = E, so that no route is lost |
//! | `pad_multiple` | `Layout::Aligned` |
//! | `permuted` `[used, H]` | the gather of `hidden_states`, bit for bit; its rows end with the last expert offset, ours go on to R |
//! | `permuted_probs` f32 `[used]` | `gather_routes` of the plan's `probs`, bit for bit, zero on padding |
//! | `unpermuted` `[T, H]` | the combine of `permuted` with the plan's `probs`; [nearly](super) |
//! | `grad_permuted` `[used, H]` | the rows of `combine_grad` of `grad_out`, bit for bit, zero on padding |
//! | `grad_probs` f32 `[T, E]` | the weights of `combine_grad`, `[T, K]`, brought to the map by `mask_grad`; nearly, and 0 where it is not set |
//! | `split_sizes`, `sorted_index` i32 `[C]` | sizes and order of the chunks |
//! | `sorted`, `sorted_probs` | the gather of `hidden_states`, and of the probabilities; both bit for bit |

use super::{near, own_size, read};
use crate::conformance::compare::same;
use crate::conformance::harness::{Checked, Fail, ensure};
use crate::conformance::naive::Widen;
use crate::{Dev, Float, Layout, Limits, PermuteBackend, PlanSpec, RoutePlan, Routing, Workspace};
use half::bf16;
use safetensors::{Dtype, SafeTensors};

/// Checks every case and field of a file `NAME/field` of TransformerEngine's permutation; gives the number of cases.
///
/// # Errors
/// The first difference, with its case and field, or what is wrong with the file.
pub fn recorded_te<B: PermuteBackend>(spec: &str, file: &[u8]) -> Result<usize, String> {
    let file = SafeTensors::deserialize(file).map_err(|e| e.to_string())?;
    let mut names: Vec<&str> =
        file.names().into_iter().filter_map(|name| name.strip_suffix("/hidden_states")).collect();
    names.sort_unstable();
    let mut known = 0;
    for name in &names {
        let hidden = file.tensor(&format!("{name}/hidden_states")).map_err(|e| e.to_string())?;
        let chunks = file.tensor(&format!("{name}/split_sizes")).is_ok();
        let fields = match (hidden.dtype(), chunks) {
            (Dtype::F32, false) => mask::<B, f32>(spec, &file, name),
            (Dtype::BF16, false) => mask::<B, bf16>(spec, &file, name),
            (Dtype::F32, true) => sort::<B, f32>(spec, &file, name),
            (Dtype::BF16, true) => sort::<B, bf16>(spec, &file, name),
            (other, _) => Err(Fail(format!("hidden_states are {other:?}"))),
        };
        known += fields.map_err(|Fail(message)| format!("{name}: {message}"))?;
    }
    let all = file.names().len();
    if known != all {
        return Err(format!("{known} of {all} fields were looked at"));
    }
    Ok(names.len())
}

/// A mask map with probabilities, forward and backward; gives the number of its fields.
fn mask<B: PermuteBackend, T: Float + Widen>(spec: &str, file: &SafeTensors<'_>, name: &str) -> Checked<usize> {
    let field = |field: &str| format!("{name}/{field}");
    let mut queue = Dev::<B>::open(&spec.parse()?)?.queue()?;
    let queue = &mut queue;
    let (set, shape) = read::<i32>(file, &field("routing_map"))?;
    let (probs, _) = read::<f32>(file, &field("probs"))?;
    let (hidden_states, rows_shape) = read::<T>(file, &field("hidden_states"))?;
    let (tokens, experts, hidden) = (shape[0], shape[1], rows_shape[1]);
    let (layout, padded) = match read::<i32>(file, &field("pad_multiple")) {
        Ok((multiple, _)) => (Layout::Aligned(multiple[0] as usize), 1),
        Err(_) => (Layout::Packed, 0),
    };
    let mut workspace = Workspace::new(queue, Limits::new(tokens, experts, experts))?;
    let (map, probs) = (queue.upload(&set)?, queue.upload(&probs)?);
    let plan_spec = PlanSpec::mask(tokens, experts).with_probs::<f32>().layout(layout);
    let routing = Routing::mask(map.rows(experts)?).probs(probs.rows(experts)?);
    let plan = RoutePlan::new(queue, &mut workspace, plan_spec, routing)?;
    plan.validate(queue)?;
    let used = *queue.download(plan.expert_offsets())?.last().unwrap_or(&0) as usize;

    let x = queue.upload(&hidden_states)?;
    let permuted = plan.gather(x.rows(hidden)?).run(queue)?;
    let (want, shape) = read::<T>(file, &field("permuted"))?;
    ensure(shape[0] == used, || format!("{used} rows in use, recorded {}", shape[0]))?;
    same("permuted", &queue.download(permuted.view())?[..used * hidden], &want, hidden)?;
    let permuted_probs = plan.gather_routes(plan.probs::<f32>()?.rows(1)?).run(queue)?;
    let (want, _) = read::<f32>(file, &field("permuted_probs"))?;
    same("permuted_probs", &queue.download(permuted_probs.view())?[..used], &want, 1)?;

    let out = plan.combine(permuted.rows(hidden)?).weights(plan.probs::<f32>()?).run::<T>(queue)?;
    let (want, _) = read::<T>(file, &field("unpermuted"))?;
    near("unpermuted", &queue.download(out.view())?, &want, hidden, own_size)?;

    let (grad_out, _) = read::<T>(file, &field("grad_out"))?;
    // A token's rows are all its hidden state, so that this is the size of each of its dot products.
    let token_size = |t: usize| -> f64 {
        let terms = hidden_states[t * hidden..][..hidden].iter().zip(&grad_out[t * hidden..]);
        terms.map(|(x, g)| f64::from(Widen::widen(*x)) * f64::from(Widen::widen(*g))).map(f64::abs).sum()
    };
    let grad_in = queue.upload(&grad_out)?;
    let op = plan.combine_grad(grad_in.rows(hidden)?).weights(plan.probs::<f32>()?).rows(permuted.rows(hidden)?);
    let (grad_rows, grad_routes) = op.run::<f32>(queue)?;
    let (want, _) = read::<T>(file, &field("grad_permuted"))?;
    same("grad_permuted", &queue.download(grad_rows.view())?[..used * hidden], &want, hidden)?;
    let grad_map = plan.mask_grad(grad_routes.view()).run(queue)?;
    let grad_probs = queue.download(grad_map.view())?;
    let (want, _) = read::<f32>(file, &field("grad_probs"))?;
    near("grad_probs", &grad_probs, &want, experts, |i| token_size(i / experts))?;
    let unset = |(i, _): &(usize, &f32)| set[*i] == 0;
    let zero = grad_probs.iter().enumerate().filter(unset).all(|(_, grad)| grad.to_bits() == 0);
    ensure(zero, || "grad_probs is not 0 where the map is not set".into())?;
    Ok(9 + padded)
}

/// A sort of chunks with probabilities; gives the number of its fields.
fn sort<B: PermuteBackend, T: Float + Widen>(spec: &str, file: &SafeTensors<'_>, name: &str) -> Checked<usize> {
    let field = |field: &str| format!("{name}/{field}");
    let mut queue = Dev::<B>::open(&spec.parse()?)?.queue()?;
    let queue = &mut queue;
    let (sizes, _) = read::<i32>(file, &field("split_sizes"))?;
    let (order, _) = read::<i32>(file, &field("sorted_index"))?;
    let (hidden_states, shape) = read::<T>(file, &field("hidden_states"))?;
    let (probs, _) = read::<f32>(file, &field("probs"))?;
    let (rows, hidden) = (shape[0], shape[1]);
    let mut workspace = Workspace::new(queue, Limits::new(rows, 1, sizes.len()))?;
    let plan_spec = PlanSpec::chunks(rows, sizes.len());
    let (sizes, order) = (queue.upload(&sizes)?, queue.upload(&order)?);
    let routing = Routing::chunks(sizes.view(), Some(order.view()));
    let plan = RoutePlan::new(queue, &mut workspace, plan_spec, routing)?;
    plan.validate(queue)?;

    let (x, p) = (queue.upload(&hidden_states)?, queue.upload(&probs)?);
    let sorted = plan.gather(x.rows(hidden)?).run(queue)?;
    same("sorted", &queue.download(sorted.view())?, &read::<T>(file, &field("sorted"))?.0, hidden)?;
    let sorted_probs = plan.gather_routes(p.rows(1)?).run(queue)?;
    same("sorted_probs", &queue.download(sorted_probs.view())?, &read::<f32>(file, &field("sorted_probs"))?.0, 1)?;
    let back = plan.combine(sorted.rows(hidden)?).run::<T>(queue)?;
    same("sorted and brought back", &queue.download(back.view())?, &hidden_states, hidden)?;
    Ok(6)
}
