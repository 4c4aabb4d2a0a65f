// Sums of the experts' load. Parameters: MoeAddLoadParams in abi.cuh.
#include "common.cuh"

// sums[e] += load[e].
extern "C" __global__ void __launch_bounds__(256) moe_add_load(MoeAddLoadParams p) {
    u32 e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e < p.experts) ((u32 *)p.sums)[e] += ((const u32 *)p.load)[e];
}
