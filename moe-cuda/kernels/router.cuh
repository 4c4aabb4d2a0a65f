// What the router's kernels share: the order of keys, shares, and sums over a warp in one order.
#pragma once
#include "math.cuh"

#define MOE_FULL 0xffffffffu

// What keys are ordered by: a NaN is 1, below -infinity; -0 equals +0. 0 is left for what cannot be taken.
MOE_DEV u32 moe_order(float key) {
    u32 bits = __float_as_uint(__fadd_rn(key, 0.0f));
    u32 ordered = bits ^ ((u32)((i32)bits >> 31) | 0x80000000u);
    return key != key ? 1u : ordered;
}

// The key of an order.
MOE_DEV float moe_order_key(u32 order) {
    u32 bits = order & 0x80000000u ? order & 0x7fffffffu : ~order;
    return order == 1u ? MOE_NAN : __uint_as_float(bits);
}

MOE_DEV bool moe_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// What a logit weighs against the largest.
MOE_DEV float moe_share(float x, float m) {
    if (moe_finite(m)) {
        float e = moe_exp(__fsub_rn(x, m));
        return x != x ? 0.0f : e;
    }
    return m != m || x == m ? 1.0f : 0.0f;
}

// The sigmoid, 0 for NaN.
MOE_DEV float moe_score(float x) {
    float s = moe_sigmoid(x);
    return x != x ? 0.0f : s;
}

// The halving tree over the lanes; every lane gets the total. Additions commute, so each lane's is the same.
MOE_DEV float moe_warp_sum(float lane) {
#pragma unroll
    for (u32 s = 16; s; s >>= 1) lane = __fadd_rn(lane, __shfl_xor_sync(MOE_FULL, lane, s));
    return lane;
}

// Logit e of a row.
MOE_DEV float moe_logit(u64 row, u32 e, u32 dtype) {
    if (dtype == MOE_F32) return __ldg((const float *)row + e);
    u16 bits = __ldg((const u16 *)row + e);
    return dtype == MOE_F16 ? moe_f16_to_f32(bits) : moe_bf16_to_f32(bits);
}

// Tokens that count.
MOE_DEV u32 moe_valid_tokens(u64 count, u32 tokens) {
    if (count == 0) return tokens;
    i32 n = *(const i32 *)count;
    return n < 0 ? 0 : moe_min((u32)n, tokens);
}

// The largest logit of a row of any length; NaN where there is nothing else.
MOE_DEV float moe_row_max(u64 row, u32 experts, u32 dtype) {
    u32 most = 0;
    for (u32 e = threadIdx.x % 32; e < experts; e += 32) most = max(most, moe_order(moe_logit(row, e, dtype)));
    return moe_order_key(__reduce_max_sync(MOE_FULL, most));
}

// The sum of the shares of a row against m.
MOE_DEV float moe_row_shares(u64 row, u32 experts, u32 dtype, float m) {
    float lane = 0.0f;
    for (u32 e = threadIdx.x % 32; e < experts; e += 32)
        lane = __fadd_rn(lane, moe_share(moe_logit(row, e, dtype), m));
    return moe_warp_sum(lane);
}

// The sum of the scores of a row.
MOE_DEV float moe_row_scores(u64 row, u32 experts, u32 dtype) {
    float lane = 0.0f;
    for (u32 e = threadIdx.x % 32; e < experts; e += 32) lane = __fadd_rn(lane, moe_score(moe_logit(row, e, dtype)));
    return moe_warp_sum(lane);
}

// What turns a logit into a probability over all experts: share / sum against m, or for the sigmoid score / sum, all
// alike where the sum is 0.
struct MoeProbs {
    u32 sigmoid;
    float m, sum, alike;

    MOE_DEV float of(float x) const {
        if (!sigmoid) return __fdiv_rn(moe_share(x, m), sum);
        return sum == 0.0f ? alike : __fdiv_rn(moe_score(x), sum);
    }
};

MOE_DEV MoeProbs moe_row_probs(u64 row, u32 experts, u32 dtype, u32 scoring) {
    MoeProbs p;
    p.sigmoid = scoring == MOE_SIGMOID;
    p.alike = __fdiv_rn(1.0f, (float)experts);
    p.m = p.sigmoid ? 0.0f : moe_row_max(row, experts, dtype);
    p.sum = p.sigmoid ? moe_row_scores(row, experts, dtype) : moe_row_shares(row, experts, dtype, p.m);
    return p;
}

// What is known of a router when its kernel is compiled: nothing; a softmax without bias and groups; a sigmoid with a
// bias and groups of 32 experts, at most 8. None of the latter two with probabilities.
struct MoeRouteAny {
    static const u32 experts = 1024; // of the kernel with a block for each token
    static MOE_DEV bool sigmoid(u32 scoring) { return scoring == MOE_SIGMOID; }
    static MOE_DEV bool biased(u64 bias) { return bias != 0; }
    static MOE_DEV bool grouped(u32 n_group, u32 topk_group) { return topk_group < n_group; }
    static MOE_DEV u64 probs(u64 probs) { return probs; }
    static const u32 groups = 32;
    static MOE_DEV u32 group(u32 experts, u32 n_group) { return experts / n_group; }
};
struct MoeRouteSoftmax {
    static const u32 experts = 256;
    static MOE_DEV bool sigmoid(u32) { return false; }
    static MOE_DEV bool biased(u64) { return false; }
    static MOE_DEV bool grouped(u32, u32) { return false; }
    static MOE_DEV u64 probs(u64) { return 0; }
    static const u32 groups = 8;
    static MOE_DEV u32 group(u32, u32) { return 32; }
};
struct MoeRouteGrouped {
    static const u32 experts = 256;
    static MOE_DEV bool sigmoid(u32) { return true; }
    static MOE_DEV bool biased(u64) { return true; }
    static MOE_DEV bool grouped(u32, u32) { return true; }
    static MOE_DEV u64 probs(u64) { return 0; }
    static const u32 groups = 8;
    static MOE_DEV u32 group(u32, u32) { return 32; }
};
