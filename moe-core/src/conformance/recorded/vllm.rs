//! Recorded answers of vLLM 0.24.0 on an H200.
//!
//! Its fields, and what they are here:
//!
//! | vLLM | here |
//! |---|---|
//! | `expert_first_token_offset` i64 `[E_local + 1]` | `expert_offsets` i32, the same numbers |
//! | `permuted_idx` i32 `[N]`: row → route | `source`, on the valid rows; vLLM goes on with the routes that are not local, we with -1 |
//! | `inv_permuted_idx` i32 `[T, K]`: route → row | `slot`, on placed routes; vLLM gives the others rows past the valid ones, we -1 |
//! | `permuted` `[N, H]` | the gather of `hidden_states` into zeros, all rows |
//! | `unpermuted` `[T, H]` | the combine of `expert_out` with `topk_weights`; vLLM rounds in another order, so it is compared [nearly](super) |

use super::{near, read};
use crate::conformance::compare::same;
use crate::conformance::harness::{Checked, Fail, ensure};
use crate::conformance::naive::Widen;
use crate::{CombineInput, Dev, Float, Limits, PermuteBackend, PlanSpec, Queue, RoutePlan, Routing, Workspace};
use float8::F8E4M3;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Checks every case and field of a file `NAME/field` of vLLM's `moe_permute` and `moe_unpermute`; gives their number.
///
/// # Errors
/// The first difference, with its case and field, or what is wrong with the file.
pub fn recorded_vllm<B: PermuteBackend>(spec: &str, file: &[u8]) -> Result<usize, String> {
    let file = SafeTensors::deserialize(file).map_err(|e| e.to_string())?;
    let mut names: Vec<&str> = file.names().into_iter().filter_map(|name| name.strip_suffix("/topk_ids")).collect();
    names.sort_unstable();
    let mut known = 0;
    for name in &names {
        let hidden = file.tensor(&format!("{name}/hidden_states")).map_err(|e| e.to_string())?;
        let fields = match hidden.dtype() {
            Dtype::F32 => case::<B, f32, f32>(spec, &file, name),
            Dtype::F16 => case::<B, f16, f16>(spec, &file, name),
            Dtype::BF16 => case::<B, bf16, bf16>(spec, &file, name),
            Dtype::F8_E4M3 => case::<B, F8E4M3, bf16>(spec, &file, name),
            other => Err(Fail(format!("hidden_states are {other:?}"))),
        };
        known += fields.map_err(|Fail(message)| format!("{name}: {message}"))?;
    }
    let all = file.names().len();
    if known != all {
        return Err(format!("{known} of {all} fields were looked at"));
    }
    Ok(names.len())
}

/// Checks the index arrays `vllm.*` of a trace against a plan of its `topk_ids`.
///
/// # Errors
/// The first difference, or what is wrong with the file.
pub fn recorded_trace<B: PermuteBackend>(spec: &str, file: &[u8], num_experts: usize) -> Result<(), String> {
    let file = SafeTensors::deserialize(file).map_err(|e| e.to_string())?;
    trace::<B>(spec, &file, num_experts).map_err(|Fail(message)| message)
}

fn trace<B: PermuteBackend>(spec: &str, file: &SafeTensors<'_>, experts: usize) -> Checked {
    let mut queue = Dev::<B>::open(&spec.parse()?)?.queue()?;
    let (ids, shape) = read::<i32>(file, "topk_ids")?;
    let (tokens, top_k) = (shape[0], shape[1]);
    let mut workspace = Workspace::new(&mut queue, Limits::new(tokens, top_k, experts))?;
    let ids = queue.upload(&ids)?;
    let routing = Routing::top_k(ids.view());
    let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(tokens, top_k, experts), routing)?;
    let arrays = ["vllm.expert_first_token_offset", "vllm.permuted_idx", "vllm.inv_permuted_idx"];
    check_plan(&mut queue, &plan, file, arrays)
}

fn check_plan<B: PermuteBackend>(
    queue: &mut Queue<'_, B>,
    plan: &RoutePlan<B>,
    file: &SafeTensors<'_>,
    [offsets, permuted, inverse]: [&str; 3],
) -> Checked {
    let (want, _) = read::<i64>(file, offsets)?;
    let got: Vec<i64> = queue.download(plan.expert_offsets())?.into_iter().map(i64::from).collect();
    same("expert_offsets", &got, &want, 0)?;
    let valid = *want.last().unwrap_or(&0) as usize;
    let (want, _) = read::<i32>(file, permuted)?;
    let source = queue.download(plan.source())?;
    same("source", &source[..valid], &want[..valid], 0)?;
    ensure(source[valid..].iter().all(|x| *x == -1), || "source is not -1 past the end".into())?;
    let (want, _) = read::<i32>(file, inverse)?;
    let want: Vec<i32> = want.into_iter().map(|row| if (row as usize) < valid { row } else { -1 }).collect();
    same("slot", &queue.download(plan.slot())?, &want, plan.shape().top_k)
}

fn case<B: PermuteBackend, T: CombineInput + Widen, O: Float + Widen>(
    spec: &str,
    file: &SafeTensors<'_>,
    name: &str,
) -> Checked<usize> {
    let field = |field: &str| format!("{name}/{field}");
    let has = |f: &str| file.tensor(&field(f)).is_ok();
    let mut queue = Dev::<B>::open(&spec.parse()?)?.queue()?;
    let (ids, shape) = read::<i32>(file, &field("topk_ids"))?;
    let (weights, _) = read::<f32>(file, &field("topk_weights"))?;
    let (hidden_states, rows_shape) = read::<T>(file, &field("hidden_states"))?;
    let (offsets, _) = read::<i64>(file, &field("expert_first_token_offset"))?;
    let map = if has("expert_map") { Some(read::<i32>(file, &field("expert_map"))?.0) } else { None };
    let (tokens, top_k, hidden, local) = (shape[0], shape[1], rows_shape[1], offsets.len() - 1);
    let experts = map.as_ref().map_or(local, Vec::len);

    let mut workspace = Workspace::new(&mut queue, Limits::new(tokens, top_k, experts))?;
    let (id_buf, map_buf) = (queue.upload(&ids)?, map.as_ref().map(|map| queue.upload(map)).transpose()?);
    let mut routing = Routing::top_k(id_buf.view());
    if let Some(map) = &map_buf {
        routing = routing.expert_map(map.view());
    }
    let plan_spec = PlanSpec::new(tokens, top_k, experts).local_experts(local);
    let plan = RoutePlan::new(&mut queue, &mut workspace, plan_spec, routing)?;
    let arrays = [field("expert_first_token_offset"), field("permuted_idx"), field("inv_permuted_idx")];
    check_plan(&mut queue, &plan, file, [&arrays[0], &arrays[1], &arrays[2]])?;
    let mut fields = 6 + usize::from(map.is_some()); // ids, weights, rows and three arrays

    let x = queue.upload(&hidden_states)?;
    let permuted = plan.gather(x.rows(hidden)?).run(&mut queue)?;
    same("permuted", &queue.download(permuted.view())?, &read::<T>(file, &field("permuted"))?.0, hidden)?;
    fields += 1;

    if has("expert_out") {
        let (rows, _) = read::<T>(file, &field("expert_out"))?;
        let (want, _) = read::<O>(file, &field("unpermuted"))?;
        let (y, w) = (queue.upload(&rows)?, queue.upload(&weights)?);
        let out = plan.combine(y.rows(hidden)?).weights(w.view()).run::<O>(&mut queue)?;
        let got = queue.download(out.view())?;
        let slot = queue.download(plan.slot())?;
        let size = |i: usize| -> f64 {
            let routes = i / hidden * top_k..(i / hidden + 1) * top_k;
            let placed = routes.filter(|route| slot[*route] >= 0);
            let term = |route: usize| (slot[route] as usize * hidden + i % hidden, f64::from(weights[route]));
            placed.map(term).map(|(at, w)| (f64::from(rows[at].widen()) * w).abs()).sum()
        };
        near("unpermuted", &got, &want, hidden, size)?;
        fields += 2;
    }
    Ok(fields)
}
