// Logits to ids and weights for few tokens: a block for each token, a thread for each expert, so that little code runs
// and nothing is done twice. Parameters: MoeRouteParams in abi.cuh; the rules are moe-core's raw::RouteArgs, to the bit.
//
// Up to 1,024 experts, of which up to 8 are taken; groups of 32 experts or none; no probabilities, and no bias on a
// softmax of all experts. Each warp ranks its 32 keys by counting and lists its best eight; then each of these counts
// what comes before it in the lists of the other warps.
#include "router.cuh"

#define MOE_LIST 8
#define MOE_ROUTE_BLOCK_WARPS 32

// Reads a parameter here and not where it is used first: that read takes as long as one of memory.
#define MOE_PIN(value) asm volatile("" : "+r"(value))
#define MOE_PIN_ADDRESS(value) asm volatile("" : "+l"(value))

extern "C" __global__ void __launch_bounds__(1024) moe_route_block(MoeRouteParams r) {
    __shared__ uint4 orders[MOE_ROUTE_BLOCK_WARPS][8];           // of all experts, 32 a warp
    __shared__ float shares[MOE_ROUTE_BLOCK_WARPS][32];
    __shared__ uint4 lists[MOE_ROUTE_BLOCK_WARPS][MOE_LIST / 4]; // the largest orders of each warp, descending
    __shared__ float2 entries[MOE_ROUTE_BLOCK_WARPS][MOE_LIST];  // whose they are, and their values
    __shared__ float2 taken[MOE_LIST];
    u32 e = threadIdx.x, lane = e % 32, warp = e / 32, warps = blockDim.x / 32, t = blockIdx.x;

    // All that comes from memory is asked for before anything is waited for.
    bool in = e < r.experts, biased = r.bias != 0;
    u64 row = r.logits + t * r.logit_stride;
    u32 bits = 0;
    float bias = 0.0f;
    i32 valid = 0x7fffffff;
    if (in) {
        if (r.dtype == MOE_F32) bits = __ldg((const u32 *)row + e);
        else bits = __ldg((const u16 *)row + e);
        if (biased) bias = __ldg((const float *)r.bias + e);
    }
    if (r.valid_tokens) valid = *(const i32 *)r.valid_tokens;
    u32 dtype = r.dtype, weight_dtype = r.weight_dtype, scoring = r.scoring, renormalize = r.renormalize;
    u32 k = r.k, n_group = r.n_group, topk_group = r.topk_group, scale = __float_as_uint(r.scaling_factor);
    u64 ids = r.ids, weights = r.weights;
    MOE_PIN(dtype);
    MOE_PIN(weight_dtype);
    MOE_PIN(scoring);
    MOE_PIN(renormalize);
    MOE_PIN(k);
    MOE_PIN(n_group);
    MOE_PIN(topk_group);
    MOE_PIN(scale);
    MOE_PIN_ADDRESS(ids);
    MOE_PIN_ADDRESS(weights);
    if ((i32)t >= valid) {
        if (e < k) {
            ((i32 *)ids)[(u64)t * k + e] = -1;
            moe_store_any(weights, (u64)t * k + e, weight_dtype, 0.0f);
        }
        return;
    }

    float x = __uint_as_float(bits);
    if (dtype == MOE_BF16) x = moe_bf16_to_f32((u16)bits);
    if (dtype == MOE_F16) x = moe_f16_to_f32((u16)bits);
    // What an expert's weight is made of: its score for the sigmoid, else its logit.
    float value = x, key = x;
    if (scoring == MOE_SIGMOID) value = moe_score(x);
    if (biased) key = x != x ? MOE_NAN : __fadd_rn(value, bias);
    u32 own = in ? moe_order(key) : 0u;

    ((u32 *)orders[warp])[lane] = own;
    __syncwarp();
    u32 rank = 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        uint4 o = orders[warp][i];
        rank += (o.x > own) + (o.y > own) + (o.z > own) + (o.w > own);
    }
    bool best = rank < MOE_LIST;
    u32 those = __ballot_sync(MOE_FULL, best), ranks = __reduce_or_sync(MOE_FULL, best ? 1u << rank : 0u);
    if (__popc(those) != MOE_LIST || ranks != (1u << MOE_LIST) - 1) {
        // Some are equal: the lower lane goes first.
#pragma unroll 1
        for (u32 i = 0; i < 32; i++) rank += __shfl_sync(MOE_FULL, own, i) == own && i < lane;
        best = rank < MOE_LIST;
    }
    if (best) {
        ((u32 *)lists[warp])[rank] = own;
        entries[warp][rank] = make_float2(__uint_as_float(e), value);
    }
    __syncthreads();

    // The softmax over all experts needs the share of each.
    bool plain = scoring == MOE_SOFTMAX && !renormalize;
    float m = 0.0f;
    if (plain) {
        m = moe_order_key(__reduce_max_sync(MOE_FULL, lane < warps ? lists[lane][0].x : 0u));
        shares[warp][lane] = in ? moe_share(x, m) : 0.0f;
    }
    // Group g is warp g; every warp finds the open ones.
    u32 open = MOE_FULL;
    if (topk_group < n_group) {
        u32 one = 0;
        if (lane < n_group) {
            one = lists[lane][0].x;
            if (biased) one = moe_order(__fadd_rn(moe_order_key(one), moe_order_key(lists[lane][0].y)));
        }
        u32 better = 0;
#pragma unroll 1
        for (u32 first = 0; first < n_group; first += 8)
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                u32 other = __shfl_sync(MOE_FULL, one, first + i); // 0 from n_group on
                better += other > one || (other == one && first + i < lane);
            }
        open = __ballot_sync(MOE_FULL, lane < n_group && better < topk_group);
    }
    // Four lanes for each entry of the warp's list: each looks at two entries of every other list. In the lists of lower
    // warps an equal order comes first, too.
    u32 at = lane / 4, part = lane % 4, before = 0;
    u32 mine = ((const u32 *)lists[warp])[at];
#pragma unroll 1
    for (u32 first = 0; first < warps; first += 8)
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 w = first + i;
            uint2 two = ((const uint2 *)lists[w])[part];
            u32 bound = w < warp ? mine - 1 : mine;
            if (w == warp || w >= warps || !(open >> w & 1)) bound = MOE_FULL;
            before += (two.x > bound) + (two.y > bound);
        }
    before += __shfl_xor_sync(MOE_FULL, before, 1);
    before += __shfl_xor_sync(MOE_FULL, before, 2);
    before += at;
    if (part == 0 && before < k && mine != 0 && (open >> warp & 1)) taken[before] = entries[warp][at];
    __syncthreads();
    if (warp) return;

    // Lanes from k on are 0 in the sums.
    float weight = 0.0f;
    float2 got = taken[lane % MOE_LIST];
    bool here = lane < k;
    if (plain) {
        float sum = 0.0f;
#pragma unroll 1
        for (u32 first = 0; first < warps; first += 8)
#pragma unroll
            for (u32 i = 0; i < 8; i++)
                if (first + i < warps) sum = __fadd_rn(sum, shares[first + i][lane]);
        weight = __fdiv_rn(moe_share(got.y, m), moe_warp_sum(sum));
    } else {
        float term = here ? got.y : 0.0f;
        if (scoring != MOE_SIGMOID) {
            m = moe_order_key(__reduce_max_sync(MOE_FULL, here ? moe_order(got.y) : 0u));
            term = here ? moe_share(got.y, m) : 0.0f;
        }
        weight = term;
        if (renormalize || scoring != MOE_SIGMOID) {
            float sum = term; // eight lanes at most: three steps of the tree
#pragma unroll
            for (u32 s = 4; s; s >>= 1) sum = __fadd_rn(sum, __shfl_xor_sync(MOE_FULL, sum, s));
            weight = sum == 0.0f ? __fdiv_rn(1.0f, (float)k) : __fdiv_rn(term, sum);
        }
    }
    if (here) {
        ((i32 *)ids)[(u64)t * k + lane] = (i32)__float_as_uint(got.x);
        moe_store_any(weights, (u64)t * k + lane, weight_dtype, __fmul_rn(weight, __uint_as_float(scale)));
    }
}
