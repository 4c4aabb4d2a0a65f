// Logits to ids and weights for few tokens: a block for each token, a thread for each expert, so that little code runs
// and nothing is done twice. Parameters: MoeRouteParams in abi.cuh; the rules are moe-core's raw::RouteArgs, to the bit.
//
// Up to 1,024 experts, of which up to 8 are taken; groups of 32 experts or none; no probabilities, and no bias on a
// softmax of all experts. Each warp ranks its 32 keys by counting and lists its best eight; then each of these counts
// what comes before it in the lists of the other warps. What takes the time is the length of the chain of instructions
// that wait for each other, and each that is fetched for the first time.
#include "router.cuh"

#define MOE_LIST 8

// Reads a parameter here and not where it is used first: that read takes as long as one of memory.
#define MOE_PIN(value) asm volatile("" : "+r"(value))
#define MOE_PIN_ADDRESS(value) asm volatile("" : "+l"(value))

MOE_DEV u32 moe_lowest_bit(u32 set) { return (u32)__ffs((i32)set) - 1; }

template <typename Known>
MOE_DEV void moe_route_token(const MoeRouteParams &r) {
    __shared__ uint4 orders[Known::experts / 32][8];            // of all experts, 32 a warp
    __shared__ float shares[Known::experts / 32][32];
    __shared__ uint4 lists[Known::experts / 32][MOE_LIST / 4];  // the largest orders of each warp, descending
    __shared__ float2 entries[Known::experts / 32][MOE_LIST];   // whose they are, and their values
    __shared__ float2 firsts[Known::experts / 32];              // the two largest keys of each warp
    __shared__ u32 taken[MOE_LIST];
    __shared__ float4 values[MOE_LIST / 4];
    u32 e = threadIdx.x, lane = e % 32, warp = e / 32, warps = blockDim.x / 32, t = blockIdx.x;

    // All that comes from memory is asked for before anything is waited for.
    bool in = e < r.experts, biased = Known::biased(r.bias);
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
    u64 at_output = (u64)t * k + e, ids = r.ids + 4 * at_output;
    u64 weights = r.weights + (weight_dtype == MOE_F32 ? 4 : 2) * at_output;
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
    bool sigmoid = Known::sigmoid(scoring), grouped = Known::grouped(n_group, topk_group);
    if (lane < MOE_LIST) ((u32 *)lists[warp])[lane] = 0; // a warp can have fewer experts
    if (e < MOE_LIST) ((float *)values)[e] = 0.0f;       // and so can the sum of those taken
    if ((i32)t >= valid) {
        if (e < k) {
            *(i32 *)ids = -1;
            moe_store_any(weights, 0, weight_dtype, 0.0f);
        }
        return;
    }

    float x = __uint_as_float(bits);
    if (dtype == MOE_BF16) x = moe_bf16_to_f32((u16)bits);
    if (dtype == MOE_F16) x = moe_f16_to_f32((u16)bits);
    // What an expert's weight is made of: its score for the sigmoid, else its logit.
    float value = x, key = x;
    if (sigmoid) value = moe_sigmoid(x);
    if (biased) key = __fadd_rn(value, bias); // NaN where x is
    u32 own = in ? moe_order(key) : 0u;
    if (sigmoid && x != x) value = 0.0f;

    // The rank in the warp: equal orders of lower quads of lanes come first, and those of lower lanes in the own quad.
    ((u32 *)orders[warp])[lane] = own;
    __syncwarp();
    u32 rank = 0, quad = lane / 4, lower = own - (own != 0);
#pragma unroll
    for (u32 q = 0; q < 8; q++) {
        uint4 o = orders[warp][q];
        u32 bound = q < quad ? lower : own;
        rank += (o.x > bound) + (o.y > bound) + (o.z > bound) + (o.w > bound);
    }
    uint4 o = orders[warp][quad];
    rank += (lane % 4 > 0 && o.x == own) + (lane % 4 > 1 && o.y == own) + (lane % 4 > 2 && o.z == own);
    if (rank < MOE_LIST && own != 0) {
        ((u32 *)lists[warp])[rank] = own;
        entries[warp][rank] = make_float2(__uint_as_float(e), value);
        if (grouped && rank < 2) ((float *)&firsts[warp])[rank] = key;
    }
    __syncthreads();

    // Four lanes for each entry of the warp's list.
    u32 at = lane / 4, mine = ((const u32 *)lists[warp])[at];
    float2 entry = entries[warp][at];
    MOE_PIN(mine);
    // The softmax over all experts needs the share of each.
    bool plain = !sigmoid && scoring == MOE_SOFTMAX && !renormalize;
    float m = 0.0f;
    if (plain) {
        m = moe_order_key(__reduce_max_sync(MOE_FULL, lane < warps ? lists[lane][0].x : 0u));
        shares[warp][lane] = in ? moe_share(x, m) : 0.0f;
    }
    // Group g is warp g; every warp finds the open ones.
    u32 others = warps == 32 ? MOE_FULL : (1u << warps) - 1;
    if (grouped) {
        u32 one = 0;
        if (lane < n_group) one = moe_order(biased ? __fadd_rn(firsts[lane].x, firsts[lane].y) : firsts[lane].x);
        u32 better = 0;
#pragma unroll 1
        for (u32 first = 0; first < (Known::groups == 8 ? 8 : n_group); first += 8)
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                u32 other = __shfl_sync(MOE_FULL, one, first + i); // 0 from n_group on
                better += other > one - (first + i < lane);
            }
        others = __ballot_sync(MOE_FULL, lane < n_group && better < topk_group);
    }
    if (others >> warp & 1) {
        // Each of the four looks at every fourth of the other lists. In those of lower warps an equal order comes first.
        others &= ~(1u << warp);
        u32 rest = others, before = lane % 4 == 0 ? at : 0;
#pragma unroll
        for (u32 i = 0; i < 3; i++)
            if (i < lane % 4) rest &= rest - 1;
#pragma unroll 1
        for (i32 left = __popc(others); left > 0; left -= 4) {
            u32 w = rest ? moe_lowest_bit(rest) : 0u;
            u32 bound = rest ? mine - (w < warp) : MOE_FULL;
            uint4 a = lists[w][0], b = lists[w][1];
            u32 more = (a.x > bound) + (a.y > bound) + (a.z > bound) + (a.w > bound);
            before += (b.x > bound) + (b.y > bound) + (b.z > bound) + (b.w > bound);
            before += more;
#pragma unroll
            for (u32 i = 0; i < 4; i++) rest &= rest - 1;
        }
        before += __shfl_xor_sync(MOE_FULL, before, 1);
        before += __shfl_xor_sync(MOE_FULL, before, 2);
        if (lane % 4 == 0 && before < k && mine != 0) {
            taken[before] = __float_as_uint(entry.x);
            ((float *)values)[before] = entry.y;
        }
    }
    __syncthreads();
    if (warp) return;

    // Lanes from k on are 0 in the sums, of which there are eight terms at most: three steps of the tree.
    float weight = ((const float *)values)[lane % MOE_LIST];
    bool here = lane < k;
    if (sigmoid) {
        if (renormalize) {
            float4 a = values[0], b = values[1];
            float even = __fadd_rn(__fadd_rn(a.x, b.x), __fadd_rn(a.z, b.z));
            float sum = __fadd_rn(even, __fadd_rn(__fadd_rn(a.y, b.y), __fadd_rn(a.w, b.w)));
            bool none = sum == 0.0f;
            weight = __fdiv_rn(none ? 1.0f : weight, none ? (float)k : sum);
        }
    } else if (plain) {
        float sum = 0.0f;
#pragma unroll 1
        for (u32 first = 0; first < warps; first += 8)
#pragma unroll
            for (u32 i = 0; i < 8; i++)
                if (first + i < warps) sum = __fadd_rn(sum, shares[first + i][lane]);
        weight = __fdiv_rn(moe_share(weight, m), moe_warp_sum(sum));
    } else {
        // Without a bias the first taken has the largest logit.
        m = biased ? moe_order_key(__reduce_max_sync(MOE_FULL, here ? moe_order(weight) : 0u)) : values[0].x;
        weight = here ? moe_share(weight, m) : 0.0f;
        float sum = weight;
#pragma unroll
        for (u32 s = 4; s; s >>= 1) sum = __fadd_rn(sum, __shfl_xor_sync(MOE_FULL, sum, s));
        weight = __fdiv_rn(weight, sum);
    }
    if (here) {
        *(i32 *)ids = (i32)taken[lane];
        moe_store_any(weights, 0, weight_dtype, __fmul_rn(weight, __uint_as_float(scale)));
    }
}

extern "C" __global__ void __launch_bounds__(1024) moe_route_block(MoeRouteParams r) {
    moe_route_token<MoeRouteAny>(r);
}
extern "C" __global__ void __launch_bounds__(256) moe_route_block_softmax(MoeRouteParams r) {
    moe_route_token<MoeRouteSoftmax>(r);
}
extern "C" __global__ void __launch_bounds__(256) moe_route_block_grouped(MoeRouteParams r) {
    moe_route_token<MoeRouteGrouped>(r);
}
