// Rows past the last offset.
#include "common.cuh"

// Zeroes rows expert_offsets[local_experts] .. out_rows. Parameters: MoeZeroTailParams.
extern "C" __global__ void __launch_bounds__(256) moe_zero_tail(MoeZeroTailParams z) {
    i32 used = ((const i32 *)z.expert_offsets)[z.local_experts];
    u64 first = used < 0 ? 0 : (u64)used;
    for (u64 row = first + blockIdx.x; row < z.out_rows; row += gridDim.x)
        moe_zero_span(z.output + row * z.output_stride, z.row_bytes, z.vec, threadIdx.x, blockDim.x);
}
