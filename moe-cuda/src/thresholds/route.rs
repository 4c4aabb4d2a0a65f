//! Which kernel routes, and how many tokens share a block.

use crate::launch::Shape;
use crate::ptx::Kernel;

const WARP: u32 = 32;
/// Routes and groups that the kernels with registers serve: a lane for each.
const LANES: usize = 32;
/// Tokens up to which each has a block of its own: all multiprocessors take part.
const TOKENS_APART: usize = 512;
/// Tokens that share a block where there are more.
const TOKENS_TOGETHER: u32 = 4;
/// Bytes of dynamic shared memory that every GPU gives beside the static memory of the kernel.
const SHARED_BYTES: usize = 47 << 10;

pub(crate) fn route_cut(tokens: usize, experts: usize, top_k: usize, n_group: usize) -> (Kernel, Shape) {
    let kernel = match experts {
        _ if top_k > LANES || n_group > LANES => Kernel::RouteAny,
        ..=128 => Kernel::Route128,
        ..=256 => Kernel::Route256,
        ..=512 => Kernel::Route512,
        _ => Kernel::RouteAny,
    };
    if kernel == Kernel::RouteAny {
        // The keys, where they fit; the kernel computes them again where not.
        let shared = Some(experts * 4).filter(|bytes| *bytes <= SHARED_BYTES).unwrap_or(0) as u32;
        return (kernel, Shape { grid: tokens as u32, block: WARP, shared, cooperative: false });
    }
    let together = if tokens <= TOKENS_APART { 1 } else { TOKENS_TOGETHER };
    (kernel, Shape { grid: (tokens as u32).div_ceil(together), block: WARP * together, shared: 0, cooperative: false })
}
