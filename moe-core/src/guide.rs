//! From other libraries' functions to this one: a table for each, and an example for each function.
//!
//! What is the same everywhere here: buffers live on one device and operations are enqueued on a [`Queue`]; a
//! [`RoutePlan`] is built once per batch and serves every product with it; nothing is read back to the host, so the
//! number of rows is a capacity R that follows from the sizes alone
//! ([`PlanSpec::num_rows`]), and the rows in use end at the last of
//! [`expert_offsets`](RoutePlan::expert_offsets). Every operation also has a form `run_into` (or `_into`) that writes into the
//! caller's memory and allocates nothing.
//!
//! # vLLM
//! | vLLM | here |
//! |---|---|
//! | `moe_permute(hidden_states, a1q_scale, topk_ids, n_expert, n_local_expert, expert_map)` | [`RoutePlan::permute`] with [`Routing::top_k`] and [`expert_map`](Routing::expert_map); scales: [`RoutePlan::permute_with_scales`], or a second [`gather`](RoutePlan::gather) |
//! | its `expert_first_token_offset` | [`expert_offsets`](RoutePlan::expert_offsets) (i32) |
//! | its `inv_permuted_idx` | [`slot`](RoutePlan::slot) (-1 where a route is not placed) |
//! | its `permuted_idx` | [`source`](RoutePlan::source) (-1 past the last row) |
//! | `align_block_size` | [`Layout::Aligned`]; `m_indices`: [`PlanSpec::with_m_indices`] |
//! | `MoEPermuteScratch` | [`Workspace`]: one for all layers |
//! | `moe_unpermute(out, permuted, topk_weights, inv_permuted_idx, expert_first_token_offset)` | [`RoutePlan::combine`] with [`weights`](Combine::weights) |
//! | `moe_align_block_size(topk_ids, block_size, num_experts, expert_map)` | [`RoutePlan::block_table`] |
//! | `topk_softmax`, `topk_sigmoid` | [`Router`], its [`Scoring`] and [`renormalize`](Router::renormalize) |
//! | `grouped_topk` | [`Router::groups`], [`Route::correction_bias`], [`Router::scaling_factor`] |
//!
//! ## `moe_permute`, `moe_unpermute`
//! Rank 1 of two has experts 2 and 3. Rows of experts elsewhere are not placed, and combine leaves them out, so that the
//! ranks' results add up.
//!
//! ```
//! use moe_core::{Dev, Layout, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! # let mut queue = Dev::<moe_cpu::Cpu>::open(&"cpu".parse()?)?.queue()?;
//! # let mut workspace = Workspace::new(&mut queue, Limits::new(3, 2, 4))?;
//!
//! let hidden_states = queue.upload(&[1.0f32, 1.0, 2.0, 2.0, 3.0, 3.0])?; // [3, 2]
//! let topk_ids = queue.upload(&[0, 2, 3, 2, 1, 3])?; // [3, 2]
//! let topk_weights = queue.upload(&[0.5f32, 0.5, 0.25, 0.75, 0.5, 0.5])?;
//! let expert_map = queue.upload(&[-1, -1, 0, 1])?;
//!
//! let spec = PlanSpec::new(3, 2, 4).local_experts(2);
//! let routing = Routing::top_k(topk_ids.view()).expert_map(expert_map.view());
//! let x = hidden_states.rows(2)?;
//! let (plan, permuted) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing, x)?;
//! assert_eq!(queue.download(plan.expert_offsets())?, [0, 2, 4]); // expert_first_token_offset
//! assert_eq!(queue.download(plan.slot())?, [-1, 0, 2, 1, -1, 3]); // inv_permuted_idx
//! assert_eq!(queue.download(permuted.view())?[..8], [1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0]);
//!
//! let out = plan.combine(permuted.rows(2)?).weights(topk_weights.view()).run::<f32>(&mut queue)?;
//! assert_eq!(queue.download(out.view())?, [0.5, 0.5, 2.0, 2.0, 1.5, 1.5]);
//!
//! // align_block_size: each expert's rows begin at a multiple of 4 here (128 for DeepGEMM); m_indices say whose they are.
//! let spec = PlanSpec::new(3, 2, 4).layout(Layout::Aligned(4)).with_m_indices();
//! let plan = RoutePlan::new(&mut queue, &mut workspace, spec, Routing::top_k(topk_ids.view()))?;
//! assert_eq!(queue.download(plan.expert_offsets())?, [0, 4, 8, 12, 16]);
//! assert_eq!(queue.download(plan.m_indices().unwrap())?[8..12], [2, 2, -1, -1]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! `a1q_scale`: scales of rows that are quantised already travel by the same plan.
//!
//! ```
//! # use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! # use moe_core::float8::F8E4M3;
//! # let mut queue = Dev::<moe_cpu::Cpu>::open(&"cpu".parse()?)?.queue()?;
//! # let mut workspace = Workspace::new(&mut queue, Limits::new(2, 1, 2))?;
//! # let topk_ids = queue.upload(&[1, 0])?;
//! # let spec = PlanSpec::new(2, 1, 2);
//! let rows = queue.upload(&[F8E4M3::from_f32(1.0), F8E4M3::from_f32(2.0)])?; // [2, 1]
//! let a1q_scale = queue.upload(&[0.5f32, 4.0])?; // [2, 1]
//! let mut plan = RoutePlan::alloc(&mut queue, spec)?;
//! let (mut permuted, mut scales) = (queue.zeros::<F8E4M3>(2)?, queue.zeros::<f32>(2)?);
//! let routing = Routing::top_k(topk_ids.view());
//! let (x, out) = (rows.rows(1)?, permuted.rows_mut(1)?);
//! let (s, s_out) = (a1q_scale.rows(1)?, scales.rows_mut(1)?);
//! plan.permute_with_scales(&mut queue, &mut workspace, spec, routing, x, out, s, s_out)?;
//! assert_eq!(queue.download(scales.view())?, [4.0, 0.5]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! Rows that are to be quantised take one pass, too: [`RoutePlan::gather_quant`]; see [`quant`](crate::quant).
//!
//! ## `moe_align_block_size`
//! For kernels that read the unpermuted rows: a plan without a gather, and a table of it. Entries of `sorted_token_ids`
//! that are N stand for padding.
//!
//! ```
//! # use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! # let mut queue = Dev::<moe_cpu::Cpu>::open(&"cpu".parse()?)?.queue()?;
//! # let mut workspace = Workspace::new(&mut queue, Limits::new(3, 2, 4))?;
//! let topk_ids = queue.upload(&[0, 2, 3, 2, 0, 3])?;
//! let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::new(3, 2, 4), Routing::top_k(topk_ids.view()))?;
//! let table = plan.block_table(4).run(&mut queue)?;
//! assert_eq!(queue.download(table.num_tokens_post_padded.view())?, [12]);
//! assert_eq!(queue.download(table.sorted_token_ids.view())?[..12], [0, 4, 6, 6, 1, 3, 6, 6, 2, 5, 6, 6]);
//! assert_eq!(queue.download(table.expert_ids.view())?[..4], [0, 2, 3, -1]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! ## `topk_softmax`, `topk_sigmoid`, `grouped_topk`
//! ```
//! use moe_core::{Dev, Router, Scoring};
//! # let mut queue = Dev::<moe_cpu::Cpu>::open(&"cpu".parse()?)?.queue()?;
//! let gating_output = queue.upload(&[0.0f32, 1.0, 3.0, 2.0])?; // [1, 4]
//!
//! // topk_softmax(…, renormalize=True)
//! let router = Router::new(4, 2).renormalize();
//! let (topk_ids, topk_weights) = router.route(gating_output.rows(4)?).run::<f32>(&mut queue)?;
//! assert_eq!(queue.download(topk_ids.view())?, [2, 3]);
//! assert!((queue.download(topk_weights.view())?[0] - 0.731).abs() < 1e-3); // e^3 / (e^3 + e^2)
//!
//! // grouped_topk(scoring_func="sigmoid", e_score_correction_bias, num_expert_group=2, topk_group=1)
//! let bias = queue.upload(&[5.0f32, 5.0, 0.0, 0.0])?;
//! let router = Router::new(4, 2).scoring(Scoring::Sigmoid).renormalize().groups(2, 1).scaling_factor(2.5);
//! let route = router.route(gating_output.rows(4)?).correction_bias(bias.view());
//! let (topk_ids, topk_weights) = route.run::<f32>(&mut queue)?;
//! assert_eq!(queue.download(topk_ids.view())?, [1, 0]); // the bias chose the group; it does not enter the weights
//! let weights = queue.download(topk_weights.view())?;
//! assert!((weights[0] + weights[1] - 2.5).abs() < 1e-5 && weights[0] > weights[1]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! # TransformerEngine
//! | TransformerEngine | here |
//! |---|---|
//! | `moe_permute(inp, routing_map, map_type="index")` | [`RoutePlan::permute`] with [`Routing::top_k`] |
//! | `moe_permute(inp, routing_map, map_type="mask")` | [`RoutePlan::permute`] with [`PlanSpec::mask`] and [`Routing::mask`] |
//! | `num_out_tokens` | [`PlanSpec::max_routes`]: a bound for each token, whose overflow is counted |
//! | `row_id_map` | the plan: [`slot`](RoutePlan::slot) and [`source`](RoutePlan::source) |
//! | `moe_permute_with_probs(inp, probs, routing_map)` | [`Routing::probs`], then [`RoutePlan::gather_routes`] of [`RoutePlan::probs`] |
//! | `moe_permute_and_pad_with_probs(inp, probs, routing_map, tokens_per_expert, align_size)` | the same with [`Layout::Aligned`] |
//! | `moe_unpermute(inp, row_id_map, merging_probs)` | [`RoutePlan::combine`], with [`weights`](Combine::weights) for `merging_probs` |
//! | `moe_sort_chunks_by_index(inp, split_sizes, sorted_index)` | [`PlanSpec::chunks`] with [`Routing::chunks`], then [`gather`](RoutePlan::gather) |
//! | `moe_sort_chunks_by_index_with_probs` | the same, and a second gather, of the probabilities `[N, 1]` |
//! | backward of permute | [`combine`](RoutePlan::combine) of the gradient, without weights |
//! | backward of unpermute | [`RoutePlan::combine_grad`] |
//! | backward of the probabilities | [`RoutePlan::combine_routes`], then [`RoutePlan::mask_grad`] |
//!
//! ## `moe_permute`, `moe_unpermute`
//! ```
//! use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! # let mut queue = Dev::<moe_cpu::Cpu>::open(&"cpu".parse()?)?.queue()?;
//! # let mut workspace = Workspace::new(&mut queue, Limits::new(2, 3, 3))?;
//! let inp = queue.upload(&[1.0f32, 2.0])?; // [2, 1]
//!
//! // map_type="mask": a token may have any number of experts, up to `max_routes`.
//! let routing_map = queue.upload(&[1u8, 0, 1, /* token 1: */ 0, 1, 0])?; // [2, 3], bool
//! let spec = PlanSpec::mask(2, 3).max_routes(2);
//! let routing = Routing::mask(routing_map.rows(3)?);
//! let (plan, permuted) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing, inp.rows(1)?)?;
//! assert_eq!(queue.download(permuted.view())?[..3], [1.0, 2.0, 1.0]);
//! assert_eq!(queue.download(plan.tokens_per_expert())?, [1, 1, 1]);
//!
//! let restored = plan.combine(permuted.rows(1)?).run::<f32>(&mut queue)?; // without merging_probs
//! assert_eq!(queue.download(restored.view())?, [2.0, 2.0]); // token 0 had two experts
//!
//! // Backward: the gradient of permute is a combine without weights, that of unpermute a gather.
//! let grad = plan.combine_grad(inp.rows(1)?).run_rows(&mut queue)?;
//! assert_eq!(queue.download(grad.view())?[..3], [1.0, 2.0, 1.0]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! ## `moe_permute_with_probs`, `moe_permute_and_pad_with_probs`
//! ```
//! use moe_core::{Dev, Layout, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! # let mut queue = Dev::<moe_cpu::Cpu>::open(&"cpu".parse()?)?.queue()?;
//! # let mut workspace = Workspace::new(&mut queue, Limits::new(2, 3, 3))?;
//! let inp = queue.upload(&[1.0f32, 2.0])?; // [2, 1]
//! let routing_map = queue.upload(&[1u8, 0, 1, 0, 1, 0])?; // [2, 3]
//! let probs = queue.upload(&[0.75f32, 0.0, 0.25, 0.0, 1.0, 0.0])?; // [2, 3]
//!
//! let spec = PlanSpec::mask(2, 3).max_routes(2).with_probs::<f32>();
//! let routing = || Ok::<_, moe_core::Error>(Routing::mask(routing_map.rows(3)?).probs(probs.rows(3)?));
//! let (plan, permuted) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing()?, inp.rows(1)?)?;
//! let by_route = plan.probs::<f32>()?; // [2, 2], what combine takes as weights
//! let permuted_probs = plan.gather_routes(by_route.rows(1)?).run(&mut queue)?;
//! assert_eq!(queue.download(permuted_probs.view())?[..3], [0.75, 1.0, 0.25]);
//! assert_eq!(queue.download(permuted.view())?[..3], [1.0, 2.0, 1.0]);
//!
//! // The gradient of the probabilities, back in the map: zero where it is not set.
//! let grad = plan.combine_routes(permuted_probs.rows(1)?).run::<f32>(&mut queue)?; // [2, 2]
//! let grad = plan.mask_grad(grad.view()).run(&mut queue)?;
//! assert_eq!(queue.download(grad.view())?, [0.75, 0.0, 0.25, 0.0, 1.0, 0.0]);
//!
//! // …_and_pad_…: each expert's rows are padded to a multiple of `align_size` on the way, with zeros.
//! let spec = spec.layout(Layout::Aligned(2));
//! let (plan, permuted) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing()?, inp.rows(1)?)?;
//! assert_eq!(queue.download(plan.expert_offsets())?, [0, 2, 4, 6]); // target_tokens_per_expert, summed
//! assert_eq!(queue.download(permuted.view())?[..6], [1.0, 0.0, 2.0, 0.0, 1.0, 0.0]);
//! let permuted_probs = plan.gather_routes(plan.probs::<f32>()?.rows(1)?).run(&mut queue)?;
//! assert_eq!(queue.download(permuted_probs.view())?[..6], [0.75, 0.0, 1.0, 0.0, 0.25, 0.0]);
//! // pad_offsets are in the plan: unpermute knows where the padding is.
//! let merged = plan.combine(permuted.rows(1)?).weights(plan.probs::<f32>()?).run::<f32>(&mut queue)?;
//! assert_eq!(queue.download(merged.view())?, [1.0, 2.0]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! ## `moe_sort_chunks_by_index`
//! Sizes and order are on the device, so that nothing waits for an all-to-all's counts.
//!
//! ```
//! use moe_core::{Dev, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! # let mut queue = Dev::<moe_cpu::Cpu>::open(&"cpu".parse()?)?.queue()?;
//! # let mut workspace = Workspace::new(&mut queue, Limits::new(5, 1, 3))?;
//! let inp = queue.upload(&[10.0f32, 11.0, 20.0, 30.0, 31.0])?; // [5, 1]
//! let (split_sizes, sorted_index) = (queue.upload(&[2, 1, 2])?, queue.upload(&[2, 0, 1])?);
//! let routing = Routing::chunks(split_sizes.view(), Some(sorted_index.view()));
//! let plan = RoutePlan::new(&mut queue, &mut workspace, PlanSpec::chunks(5, 3), routing)?;
//! let out = plan.gather(inp.rows(1)?).run(&mut queue)?;
//! assert_eq!(queue.download(out.view())?, [30.0, 31.0, 10.0, 11.0, 20.0]);
//!
//! // …_with_probs: probabilities of the rows go the same way.
//! let probs = queue.upload(&[0.1f32, 0.2, 0.3, 0.4, 0.5])?;
//! let permuted_probs = plan.gather(probs.rows(1)?).run(&mut queue)?;
//! assert_eq!(queue.download(permuted_probs.view())?, [0.4, 0.5, 0.1, 0.2, 0.3]);
//!
//! // Back, which is also the gradient.
//! let back = plan.combine(out.rows(1)?).run::<f32>(&mut queue)?;
//! assert_eq!(queue.download(back.view())?, [10.0, 11.0, 20.0, 30.0, 31.0]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! # Megatron
//! | Megatron-LM | here |
//! |---|---|
//! | `topk_routing_with_score_function` | [`Router`] |
//! | `moe_router_pre_softmax=False` | [`Scoring::SoftmaxOfTopK`] |
//! | `moe_router_topk_scaling_factor`, `moe_router_num_groups`, `moe_router_group_topk` | [`Router::scaling_factor`], [`Router::groups`] |
//! | `switch_load_balancing_loss_func`, `z_loss_func` | [`Router::losses`], and in [`Router::grad`] |
//! | `moe_expert_capacity_factor`, `moe_token_drop_policy="position"` | [`Capacity::ByRoute`] |
//! | `moe_token_drop_policy="probs"` | [`Capacity::ByWeight`] |
//! | `moe_pad_expert_input_to_capacity` (drop and pad) | [`Layout::Padded`] |
//! | `permute(tokens, routing_map, drop_and_pad=True)` | [`RoutePlan::permute`] with it |
//! | `sort_chunks_by_idxs` | as TransformerEngine's |
//!
//! ## Drop and pad
//! Every expert has exactly `capacity` rows, so that the shape of a batch never changes. Which routes were dropped is
//! counted on the device.
//!
//! ```
//! use moe_core::{Capacity, Dev, Layout, Limits, PlanSpec, RoutePlan, Routing, Workspace};
//! # let mut queue = Dev::<moe_cpu::Cpu>::open(&"cpu".parse()?)?.queue()?;
//! # let mut workspace = Workspace::new(&mut queue, Limits::new(4, 1, 2))?;
//! let tokens = queue.upload(&[1.0f32, 2.0, 3.0, 4.0])?; // [4, 1]
//! let ids = queue.upload(&[0, 0, 1, 0])?;
//! let probs = queue.upload(&[0.2f32, 0.9, 0.5, 0.6])?;
//! let capacity = 2; // ceil(4 * 1 / 2 * capacity_factor)
//!
//! // moe_token_drop_policy="position"
//! let spec = PlanSpec::new(4, 1, 2).layout(Layout::Padded(capacity));
//! let routing = Routing::top_k(ids.view());
//! let (plan, permuted) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing, tokens.rows(1)?)?;
//! assert_eq!(queue.download(permuted.view())?, [1.0, 2.0, 3.0, 0.0]); // [2 * capacity, 1]
//! assert_eq!(plan.status(&mut queue)?.over_capacity, 1);
//!
//! // moe_token_drop_policy="probs"
//! let spec = spec.capacity(Capacity::ByWeight(capacity));
//! let routing = Routing::top_k(ids.view()).capacity_weights(probs.view());
//! let (plan, permuted) = RoutePlan::permute(&mut queue, &mut workspace, spec, routing, tokens.rows(1)?)?;
//! assert_eq!(queue.download(permuted.view())?, [2.0, 4.0, 3.0, 0.0]);
//!
//! // A dropped token comes home as zero.
//! let out = plan.combine(permuted.rows(1)?).weights(probs.view()).run::<f32>(&mut queue)?;
//! assert_eq!(queue.download(out.view())?[0], 0.0);
//! # Ok::<(), moe_core::Error>(())
//! ```
#![allow(unused_imports, reason = "links")]

use crate::{Capacity, Combine, Layout, PlanSpec, Queue, Route, RoutePlan, Router, Routing, Scoring, Workspace};
