//! Which kernel routes, and how many tokens share a block. The limits are those of `kernels/ABI.md`.

use crate::launch::Shape;
use crate::ptx::Kernel;
use moe_core::Scoring;
use moe_core::raw::RouterShape;

const WARP: u32 = 32;
/// Routes and groups that the kernels with registers serve: a lane for each.
const LANES: usize = 32;
/// What the kernel with a block for each token serves, and tokens up to which it is the faster one.
const BLOCK_EXPERTS: usize = 1_024;
const BLOCK_TOP_K: usize = 8;
const BLOCK_TOKENS: usize = 256;
const BLOCK_TOKENS_GROUPED: usize = 1_024;
/// Experts that the kernels for a known kind of router serve.
const KNOWN_EXPERTS: usize = 256;
/// Tokens that share a block of the kernels with registers.
const TOKENS_TOGETHER: u32 = 4;
/// Bytes of dynamic shared memory that every GPU gives beside the static memory of the kernel.
const SHARED_BYTES: usize = 47 << 10;

/// The two common kinds of router, which have kernels of their own, up to 256 experts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A softmax without bias and groups.
    Softmax,
    /// A sigmoid with a bias and groups of a warp's experts.
    Grouped,
    Other,
}

/// How a batch is routed.
pub(crate) fn route_cut(tokens: usize, shape: &RouterShape, bias: bool, probs: bool) -> (Kernel, Shape) {
    let (experts, top_k) = (shape.num_experts, shape.top_k);
    let cut = |grid: u32, block, shared| Shape { grid, block, shared, cooperative: false };
    let n_group = shape.groups.map_or(1, |groups| groups.n_group);
    let grouped = shape.groups.is_some_and(|groups| groups.topk_group < n_group);
    let sigmoid = shape.scoring == Scoring::Sigmoid;
    let by_warp = experts / n_group == WARP as usize;
    let kind = match experts <= KNOWN_EXPERTS && !probs {
        true if !sigmoid && !bias && !grouped => Kind::Softmax,
        true if sigmoid && bias && grouped && by_warp => Kind::Grouped,
        _ => Kind::Other,
    };
    let softmax_of_all = bias && shape.scoring == Scoring::Softmax;
    let apart = experts <= BLOCK_EXPERTS && top_k <= BLOCK_TOP_K && !probs && !softmax_of_all;
    let few = if grouped { BLOCK_TOKENS_GROUPED } else { BLOCK_TOKENS };
    if apart && tokens <= few && (!grouped || by_warp) {
        let kernel = match kind {
            Kind::Softmax => Kernel::RouteBlockSoftmax,
            Kind::Grouped => Kernel::RouteBlockGrouped,
            Kind::Other => Kernel::RouteBlock,
        };
        return (kernel, cut(tokens as u32, (experts as u32).next_multiple_of(WARP), 0));
    }
    let kernel = match (experts, kind) {
        _ if top_k > LANES || n_group > LANES || softmax_of_all => Kernel::RouteAny,
        (..=128, Kind::Softmax) => Kernel::Route128Softmax,
        (..=256, Kind::Softmax) => Kernel::Route256Softmax,
        (..=256, Kind::Grouped) => Kernel::Route256Grouped,
        (..=128, _) => Kernel::Route128,
        (..=256, _) => Kernel::Route256,
        (..=512, _) => Kernel::Route512,
        _ => Kernel::RouteAny,
    };
    if kernel == Kernel::RouteAny {
        // The keys, where they fit; the kernel computes them again where not.
        let shared = Some(experts * 4).filter(|bytes| *bytes <= SHARED_BYTES).unwrap_or(0);
        return (kernel, cut(tokens as u32, WARP, shared as u32));
    }
    (kernel, cut((tokens as u32).div_ceil(TOKENS_TOGETHER), WARP * TOKENS_TOGETHER, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::raw::RouterGroups;

    #[test]
    fn every_kernel_gets_no_more_than_it_holds() {
        let plain = RouterShape {
            num_experts: 256,
            top_k: 8,
            scoring: Scoring::Sigmoid,
            renormalize: true,
            scaling_factor: 1.0,
            groups: Some(RouterGroups { n_group: 8, topk_group: 4 }),
        };
        for num_experts in [1, 32, 33, 128, 129, 256, 257, 512, 513, 1024, 1025, 12_032, 12_033, 1 << 20] {
            for top_k in [1, 8, 9, 32, 33] {
                for n_group in [1, 2, 8, 33, 128] {
                    for scoring in [Scoring::Sigmoid, Scoring::Softmax] {
                        for (tokens, bias, probs) in
                            [(1, false, false), (256, true, false), (257, false, true), (1 << 20, true, true)]
                        {
                            let groups = Some(RouterGroups { n_group, topk_group: n_group.div_ceil(2) });
                            let shape = RouterShape { num_experts, top_k, groups, scoring, ..plain };
                            let (kernel, cut) = route_cut(tokens, &shape, bias, probs);
                            let (most, warps) = match kernel {
                                Kernel::Route128 | Kernel::Route128Softmax => (128, 8),
                                Kernel::Route256 | Kernel::Route256Softmax | Kernel::Route256Grouped => (256, 8),
                                Kernel::Route512 => (512, 8),
                                Kernel::RouteBlock => (1024, 32),
                                Kernel::RouteBlockSoftmax | Kernel::RouteBlockGrouped => (256, 8),
                                _ => (usize::MAX, 1),
                            };
                            use Kernel::{RouteBlock, RouteBlockGrouped, RouteBlockSoftmax};
                            let by_block = matches!(kernel, RouteBlock | RouteBlockGrouped | RouteBlockSoftmax);
                            assert!(num_experts <= most && cut.block.div_ceil(WARP) <= warps, "{kernel:?} {shape:?}");
                            assert!(kernel == Kernel::RouteAny || (top_k <= 32 && (n_group <= 32 || by_block)));
                            assert!(cut.shared as usize <= SHARED_BYTES);
                            assert!(kernel == Kernel::RouteAny || !bias || shape.scoring != Scoring::Softmax);
                            if by_block {
                                assert!(top_k <= 8 && !probs && (n_group == 1 || num_experts / n_group == 32));
                                assert!(cut.grid as usize == tokens && cut.block as usize >= num_experts);
                            } else {
                                assert!(cut.grid as usize * (cut.block / WARP) as usize >= tokens);
                            }
                        }
                    }
                }
            }
        }
    }
}
