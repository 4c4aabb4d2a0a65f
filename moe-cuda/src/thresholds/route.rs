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
/// Experts of a group there: those of a warp.
const BLOCK_GROUP: usize = 32;
/// Tokens up to which each warp has a block of its own: all multiprocessors take part.
const TOKENS_APART: usize = 512;
/// Tokens that share a block where there are more.
const TOKENS_TOGETHER: u32 = 4;
/// Bytes of dynamic shared memory that every GPU gives beside the static memory of the kernel.
const SHARED_BYTES: usize = 47 << 10;

/// How a batch is routed.
pub(crate) fn route_cut(tokens: usize, shape: &RouterShape, bias: bool, probs: bool) -> (Kernel, Shape) {
    let experts = shape.num_experts;
    let n_group = shape.groups.map_or(1, |groups| groups.n_group);
    let cut = |grid: u32, block, shared| Shape { grid, block, shared, cooperative: false };
    let softmax_of_all = bias && shape.scoring == Scoring::Softmax;
    let grouped = shape.groups.is_some_and(|groups| groups.topk_group < n_group);
    let block = experts <= BLOCK_EXPERTS && shape.top_k <= BLOCK_TOP_K && !probs && !softmax_of_all;
    if block && tokens <= BLOCK_TOKENS && (!grouped || experts / n_group == BLOCK_GROUP) {
        return (Kernel::RouteBlock, cut(tokens as u32, (experts as u32).next_multiple_of(WARP), 0));
    }
    let kernel = match experts {
        _ if shape.top_k > LANES || n_group > LANES => Kernel::RouteAny,
        ..=128 => Kernel::Route128,
        ..=256 => Kernel::Route256,
        ..=512 => Kernel::Route512,
        _ => Kernel::RouteAny,
    };
    if kernel == Kernel::RouteAny {
        // The keys, where they fit; the kernel computes them again where not.
        let shared = Some(experts * 4).filter(|bytes| *bytes <= SHARED_BYTES).unwrap_or(0);
        return (kernel, cut(tokens as u32, WARP, shared as u32));
    }
    let together = if tokens <= TOKENS_APART { 1 } else { TOKENS_TOGETHER };
    (kernel, cut((tokens as u32).div_ceil(together), WARP * together, 0))
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
                    for (tokens, bias, probs) in
                        [(1, false, false), (256, true, false), (257, false, true), (1 << 20, true, true)]
                    {
                        let groups = Some(RouterGroups { n_group, topk_group: n_group.div_ceil(2) });
                        let shape = RouterShape { num_experts, top_k, groups, ..plain };
                        let (kernel, cut) = route_cut(tokens, &shape, bias, probs);
                        let (most, warps) = match kernel {
                            Kernel::Route128 => (128, 8),
                            Kernel::Route256 => (256, 8),
                            Kernel::Route512 => (512, 8),
                            Kernel::RouteBlock => (1024, 32),
                            _ => (usize::MAX, 1),
                        };
                        assert!(num_experts <= most && cut.block.div_ceil(WARP) <= warps, "{kernel:?} {shape:?}");
                        assert!(
                            kernel == Kernel::RouteAny
                                || (top_k <= 32 && (n_group <= 32 || kernel == Kernel::RouteBlock))
                        );
                        assert!(cut.shared as usize <= SHARED_BYTES);
                        if kernel == Kernel::RouteBlock {
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
