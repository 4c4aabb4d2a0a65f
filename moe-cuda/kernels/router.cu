// Logits to ids and weights: a warp for each token, lane e mod 32 for expert e. Parameters: MoeRouteParams in abi.cuh;
// the rules are moe-core's raw::RouteArgs, to the bit.
//
// moe_route_128, _256 and _512 hold the logits of up to as many experts in registers and take up to 32 of them, from up
// to 32 groups, but no bias on a softmax of all experts; those with a suffix are the same for what is said of it in router.cuh. The choice: the k-th largest of the lanes' largest keys is a bound that at least k keys reach; those that
// reach it, seldom more than a few, are laid side by side in ascending id and ranked by counting. Where more than 32
// reach it, and in moe_route_any, which takes any number of anything, experts are taken one after the other.
#include "router.cuh"

#define MOE_ROUTE_WARPS 8
#define MOE_MAX_GROUPS 128

// Takes one expert after the other: those that come after `last` in the order, ties to the lower id.
struct MoeLast {
    u32 order;
    i32 id;

    MOE_DEV bool before(u32 other, i32 id_other) const { return other < order || (other == order && id_other > id); }
};

// A token that is not routed.
MOE_DEV void moe_route_nothing(const MoeRouteParams &r, u32 t, u32 lane) {
    for (u32 k = lane; k < r.k; k += 32) {
        ((i32 *)r.ids)[(u64)t * r.k + k] = -1;
        moe_store_any(r.weights, (u64)t * r.k + k, r.weight_dtype, 0.0f);
    }
    if (r.probs)
        for (u32 e = lane; e < r.experts; e += 32) ((float *)(r.probs + t * r.prob_stride))[e] = 0.0f;
}

// Whether the softmax over all experts is needed for the choice or the weights.
MOE_DEV bool moe_route_needs_softmax(const MoeRouteParams &r) {
    return r.scoring == MOE_SOFTMAX && (r.bias != 0 || !r.renormalize);
}

// The key of expert e.
MOE_DEV float moe_route_key(const MoeRouteParams &r, const MoeProbs &all, u32 e, float x) {
    if (r.bias == 0) return x;
    float score = x;
    if (r.scoring == MOE_SIGMOID) score = moe_sigmoid(x);
    if (r.scoring == MOE_SOFTMAX) score = all.of(x);
    return x != x ? MOE_NAN : __fadd_rn(score, __ldg((const float *)r.bias + e));
}

// The open groups, a bit for each, from the two largest orders of group `lane`, 0 from n_group on. With `both` a group
// counts as much as the sum of its two.
MOE_DEV u32 moe_route_open(const MoeRouteParams &r, bool both, u32 one, u32 two, u32 lane) {
    if (both && one) one = moe_order(__fadd_rn(moe_order_key(one), moe_order_key(two)));
    u32 better = 0;
#pragma unroll 1
    for (u32 first = 0; first < r.n_group; first += 8)
#pragma unroll
        for (u32 i = 0; i < 8; i++)
            better += __shfl_sync(MOE_FULL, one, first + i) > one - (first + i < lane);
    return __ballot_sync(MOE_FULL, lane < r.n_group && better < r.topk_group);
}

// The two largest orders of each of 8 groups, of which group j is register j of all lanes: lane g gets those of group g
// mod 8. Each step halves the groups that a lane looks at and doubles the lanes that a group's best are of.
MOE_DEV uint2 moe_route_group_bests(const u32 (&order)[8], u32 lane) {
    u32 a[4], b[4];
    bool upper = lane & 16;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 keep = upper ? order[i + 4] : order[i], give = upper ? order[i] : order[i + 4];
        u32 got = __shfl_xor_sync(MOE_FULL, give, 16);
        a[i] = max(keep, got);
        b[i] = min(keep, got);
    }
#pragma unroll
    for (u32 half = 2; half; half >>= 1) {
        upper = lane & (4 * half);
#pragma unroll
        for (u32 i = 0; i < half; i++) {
            u32 one = __shfl_xor_sync(MOE_FULL, upper ? a[i] : a[i + half], 4 * half);
            u32 two = __shfl_xor_sync(MOE_FULL, upper ? b[i] : b[i + half], 4 * half);
            u32 own = upper ? a[i + half] : a[i], next = upper ? b[i + half] : b[i];
            a[i] = max(own, one);
            b[i] = max(min(own, one), max(next, two));
        }
    }
#pragma unroll
    for (u32 s = 2; s; s >>= 1) {
        u32 one = __shfl_xor_sync(MOE_FULL, a[0], s), two = __shfl_xor_sync(MOE_FULL, b[0], s);
        b[0] = max(min(a[0], one), max(b[0], two));
        a[0] = max(a[0], one);
    }
    // Now group g is in lanes 4 g to 4 g + 3.
    return make_uint2(__shfl_sync(MOE_FULL, a[0], 4 * lane), __shfl_sync(MOE_FULL, b[0], 4 * lane));
}

// J logits a lane.
template <u32 J, typename Known>
MOE_DEV void moe_route_registers(const MoeRouteParams &r) {
    __shared__ uint4 stage[MOE_ROUTE_WARPS][32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 t = blockIdx.x * (blockDim.x / 32) + warp;
    if (t >= r.tokens) return;
    bool sigmoid = Known::sigmoid(r.scoring), biased = Known::biased(r.bias);
    u64 probs = Known::probs(r.probs), row = r.logits + t * r.logit_stride;
    float x[J];
    // Loads first: nothing depends on the count of valid tokens but what is written.
    if (r.dtype == MOE_F32) {
#pragma unroll
        for (u32 j = 0; j < J; j++) x[j] = lane + 32 * j < r.experts ? __ldg((const float *)row + lane + 32 * j) : 0.0f;
    } else {
        u16 bits[J];
#pragma unroll
        for (u32 j = 0; j < J; j++) bits[j] = lane + 32 * j < r.experts ? __ldg((const u16 *)row + lane + 32 * j) : 0;
        if (r.dtype == MOE_F16) {
#pragma unroll
            for (u32 j = 0; j < J; j++) x[j] = moe_f16_to_f32(bits[j]);
        } else {
#pragma unroll
            for (u32 j = 0; j < J; j++) x[j] = moe_bf16_to_f32(bits[j]);
        }
    }
    if (t >= moe_valid_tokens(r.valid_tokens, r.tokens)) {
        moe_route_nothing(r, t, lane);
        return;
    }

    u32 order[J];
    float all_m = 0.0f, all_sum = 0.0f;
    bool plain = !sigmoid && r.scoring == MOE_SOFTMAX && !r.renormalize;
#pragma unroll
    for (u32 j = 0; j < J; j++) order[j] = lane + 32 * j < r.experts ? moe_order(x[j]) : 0u;
    if (plain) {
        u32 most = 0;
#pragma unroll
        for (u32 j = 0; j < J; j++) most = max(most, order[j]);
        all_m = moe_order_key(__reduce_max_sync(MOE_FULL, most));
        if (moe_finite(all_m)) {
            float sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < J; j++) {
                float share = moe_exp(__fsub_rn(x[j], all_m));
                if (lane + 32 * j < r.experts) sum = __fadd_rn(sum, x[j] != x[j] ? 0.0f : share);
            }
            all_sum = moe_warp_sum(sum);
        } else {
            all_sum = moe_row_shares(row, r.experts, r.dtype, all_m);
        }
    }
    if (probs) {
        MoeProbs p = moe_row_probs(row, r.experts, r.dtype, r.scoring);
        for (u32 e = lane; e < r.experts; e += 32)
            ((float *)(probs + t * r.prob_stride))[e] = p.of(moe_logit(row, e, r.dtype));
    }
    // Of a sigmoid's experts the scores are kept, once they are there, of others the logits.
    if (biased) {
#pragma unroll
        for (u32 j = 0; j < J; j++)
            if (lane + 32 * j < r.experts) {
                float score = x[j];
                if (sigmoid) score = moe_score(x[j]);
                float key = x[j] != x[j] ? MOE_NAN : __fadd_rn(score, __ldg((const float *)r.bias + lane + 32 * j));
                order[j] = moe_order(key);
                if (sigmoid) x[j] = score;
            }
    }

    if (Known::grouped(r.n_group, r.topk_group)) {
        u32 size = Known::group(r.experts, r.n_group), one = 0, two = 0;
        if (size == 32) {
            if constexpr (J == 8) {
                uint2 bests = moe_route_group_bests(order, lane);
                one = bests.x;
                two = bests.y;
            } else {
#pragma unroll
                for (u32 j = 0; j < J; j++) {
                    u32 first = __reduce_max_sync(MOE_FULL, order[j]);
                    u32 with = __ballot_sync(MOE_FULL, order[j] == first);
                    u32 second = __reduce_max_sync(MOE_FULL, order[j] == first ? 0u : order[j]);
                    if (lane == j) {
                        one = first;
                        two = with & (with - 1) ? first : second;
                    }
                }
            }
        } else {
#pragma unroll 1
            for (u32 g = 0; g < r.n_group; g++) {
                u32 a = 0, b = 0;
#pragma unroll
                for (u32 j = 0; j < J; j++) {
                    u32 e = lane + 32 * j;
                    u32 o = e >= g * size && e < (g + 1) * size ? order[j] : 0u;
                    b = max(b, min(a, o));
                    a = max(a, o);
                }
                u32 first = __reduce_max_sync(MOE_FULL, a);
                u32 with = __ballot_sync(MOE_FULL, a == first);
                u32 second = __reduce_max_sync(MOE_FULL, a == first ? b : a);
                if (lane == g) {
                    one = first;
                    two = with & (with - 1) ? first : second;
                }
            }
        }
        if (lane >= r.n_group) one = 0;
        u32 open = moe_route_open(r, biased && size > 1, one, two, lane);
        if (size == 32) {
#pragma unroll
            for (u32 j = 0; j < J; j++) order[j] = open >> j & 1 ? order[j] : 0u;
        } else {
#pragma unroll
            for (u32 j = 0; j < J; j++) {
                u32 e = lane + 32 * j;
                order[j] = e < r.experts && (open >> (e / size) & 1) ? order[j] : 0u;
            }
        }
    }

    // The k-th largest of the lanes' largest.
    u32 most = 0, bound = 0;
#pragma unroll
    for (u32 j = 0; j < J; j++) most = max(most, order[j]);
    for (u32 k = 0; k < r.k; k++) {
        bound = __reduce_max_sync(MOE_FULL, most);
        most = most == bound ? 0u : most;
    }
    bound = max(bound, 1u);
    u32 found = 0, below = (1u << lane) - 1;
#pragma unroll
    for (u32 j = 0; j < J; j++) {
        bool in = order[j] >= bound;
        u32 with = __ballot_sync(MOE_FULL, in);
        u32 at = found + __popc(with & below);
        if (in && at < 32) stage[warp][at] = make_uint4(order[j], lane + 32 * j, __float_as_uint(x[j]), 0);
        found += __popc(with);
    }
    i32 id = 0;
    float value = 0.0f;
    if (found <= 32) {
        __syncwarp();
        uint4 own = make_uint4(0, 0, 0, 0);
        if (lane < found) own = stage[warp][lane];
        u32 rank = 0;
        for (u32 i = 0; i < found; i++) rank += __shfl_sync(MOE_FULL, own.x, i) > own.x - (i < lane);
        __syncwarp();
        if (lane < found && rank < r.k) stage[warp][rank] = own;
        __syncwarp();
        if (lane < r.k) {
            uint4 mine = stage[warp][lane];
            id = (i32)mine.y;
            value = __uint_as_float(mine.z);
        }
    } else {
        MoeLast last = {0xffffffffu, -1};
#pragma unroll 1
        for (u32 k = 0; k < r.k; k++) {
            u32 best = 0;
            i32 at = 0;
#pragma unroll
            for (u32 j = 0; j < J; j++) {
                i32 e = lane + 32 * j;
                if (order[j] > best && last.before(order[j], e)) {
                    best = order[j];
                    at = e;
                }
            }
            u32 first = __reduce_max_sync(MOE_FULL, best);
            i32 winner = __reduce_min_sync(MOE_FULL, best == first ? at : 0x7fffffff);
            last = {first, winner};
            if (lane == k) id = winner;
        }
        if (lane < r.k) value = moe_logit(row, (u32)id, r.dtype);
        if (sigmoid && biased) value = moe_score(value);
    }

    // Lane k holds number k of those taken.
    bool own = lane < r.k;
    float weight;
    if (sigmoid) {
        weight = own ? (biased ? value : moe_score(value)) : 0.0f;
        if (r.renormalize) {
            float sum = moe_warp_sum(weight);
            bool none = sum == 0.0f;
            weight = __fdiv_rn(none ? 1.0f : weight, none ? (float)r.k : sum);
        }
    } else if (plain) {
        weight = __fdiv_rn(moe_share(value, all_m), all_sum);
    } else {
        float m = moe_order_key(__reduce_max_sync(MOE_FULL, own ? moe_order(value) : 0u));
        weight = own ? moe_share(value, m) : 0.0f;
        weight = __fdiv_rn(weight, moe_warp_sum(weight));
    }
    if (own) {
        ((i32 *)r.ids)[(u64)t * r.k + lane] = id;
        moe_store_any(r.weights, (u64)t * r.k + lane, r.weight_dtype, __fmul_rn(weight, r.scaling_factor));
    }
}

extern "C" __global__ void __launch_bounds__(256) moe_route_128(MoeRouteParams r) {
    moe_route_registers<4, MoeRouteAny>(r);
}
extern "C" __global__ void __launch_bounds__(256) moe_route_256(MoeRouteParams r) {
    moe_route_registers<8, MoeRouteAny>(r);
}
extern "C" __global__ void __launch_bounds__(256, 2) moe_route_512(MoeRouteParams r) {
    moe_route_registers<16, MoeRouteAny>(r);
}
extern "C" __global__ void __launch_bounds__(256) moe_route_128_softmax(MoeRouteParams r) {
    moe_route_registers<4, MoeRouteSoftmax>(r);
}
extern "C" __global__ void __launch_bounds__(256) moe_route_256_softmax(MoeRouteParams r) {
    moe_route_registers<8, MoeRouteSoftmax>(r);
}
extern "C" __global__ void __launch_bounds__(256) moe_route_256_grouped(MoeRouteParams r) {
    moe_route_registers<8, MoeRouteGrouped>(r);
}

// Any number of experts, groups and experts taken: one warp a block. Orders lie in dynamic shared memory where the host
// gives 4 bytes an expert, else they are computed again for each expert taken.
extern "C" __global__ void __launch_bounds__(32) moe_route_any(MoeRouteParams r) {
    extern __shared__ u32 orders[];
    __shared__ u32 groups[MOE_MAX_GROUPS];
    __shared__ u32 open[MOE_MAX_GROUPS];
    u32 lane = threadIdx.x, t = blockIdx.x, size = r.experts / r.n_group;
    u32 room;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(room));
    bool kept = room >= 4ull * r.experts;
    u64 row = r.logits + t * r.logit_stride;
    if (t >= moe_valid_tokens(r.valid_tokens, r.tokens)) {
        moe_route_nothing(r, t, lane);
        return;
    }
    MoeProbs all;
    all.sigmoid = 0;
    all.m = all.sum = all.alike = 0.0f;
    if (r.probs || moe_route_needs_softmax(r)) all = moe_row_probs(row, r.experts, r.dtype, r.scoring);
    if (r.probs)
        for (u32 e = lane; e < r.experts; e += 32)
            ((float *)(r.probs + t * r.prob_stride))[e] = all.of(moe_logit(row, e, r.dtype));
    if (kept)
        for (u32 e = lane; e < r.experts; e += 32)
            orders[e] = moe_order(moe_route_key(r, all, e, moe_logit(row, e, r.dtype)));
    __syncwarp();
    auto order_of = [&](u32 e) {
        return kept ? orders[e] : moe_order(moe_route_key(r, all, e, moe_logit(row, e, r.dtype)));
    };

    bool grouped = r.topk_group < r.n_group;
    if (grouped) {
        for (u32 g = 0; g < r.n_group; g++) {
            u32 a = 0, b = 0;
            for (u32 e = g * size + lane; e < (g + 1) * size; e += 32) {
                u32 o = order_of(e);
                b = max(b, min(a, o));
                a = max(a, o);
            }
            u32 first = __reduce_max_sync(MOE_FULL, a);
            u32 with = __ballot_sync(MOE_FULL, a == first);
            u32 second = __reduce_max_sync(MOE_FULL, a == first ? b : a);
            if (with & (with - 1)) second = first;
            if (r.bias != 0 && size > 1) first = moe_order(__fadd_rn(moe_order_key(first), moe_order_key(second)));
            if (lane == 0) groups[g] = first;
        }
        __syncwarp();
        for (u32 g = lane; g < r.n_group; g += 32) {
            u32 better = 0;
            for (u32 i = 0; i < r.n_group; i++) better += groups[i] > groups[g] || (groups[i] == groups[g] && i < g);
            open[g] = better < r.topk_group;
        }
        __syncwarp();
    }

    i32 *ids = (i32 *)r.ids + (u64)t * r.k;
    MoeLast last = {0xffffffffu, -1};
    for (u32 k = 0; k < r.k; k++) {
        u32 best = 0;
        i32 at = 0;
        for (u32 e = lane; e < r.experts; e += 32) {
            if (grouped && !open[e / size]) continue;
            u32 o = order_of(e);
            if (o > best && last.before(o, (i32)e)) {
                best = o;
                at = (i32)e;
            }
        }
        u32 first = __reduce_max_sync(MOE_FULL, best);
        i32 winner = __reduce_min_sync(MOE_FULL, best == first ? at : 0x7fffffff);
        last = {first, winner};
        if (lane == 0) ids[k] = winner;
    }
    __syncwarp();

    // Their weights: the sums over those taken first.
    u32 most = 0;
    float lane_sum = 0.0f, m = all.m, sum = all.sum;
    bool sigmoid = r.scoring == MOE_SIGMOID, plain = r.scoring == MOE_SOFTMAX && !r.renormalize;
    if (!sigmoid && !plain) {
        for (u32 k = lane; k < r.k; k += 32) most = max(most, moe_order(moe_logit(row, (u32)ids[k], r.dtype)));
        m = moe_order_key(__reduce_max_sync(MOE_FULL, most));
    }
    if (!plain) {
        for (u32 k = lane; k < r.k; k += 32) {
            float x = moe_logit(row, (u32)ids[k], r.dtype);
            lane_sum = __fadd_rn(lane_sum, sigmoid ? moe_score(x) : moe_share(x, m));
        }
        sum = moe_warp_sum(lane_sum);
    }
    for (u32 k = lane; k < r.k; k += 32) {
        float x = moe_logit(row, (u32)ids[k], r.dtype), w;
        if (!sigmoid) w = __fdiv_rn(moe_share(x, m), sum);
        else if (!r.renormalize) w = moe_score(x);
        else w = sum == 0.0f ? __fdiv_rn(1.0f, (float)r.k) : __fdiv_rn(moe_score(x), sum);
        moe_store_any(r.weights, (u64)t * r.k + k, r.weight_dtype, __fmul_rn(w, r.scaling_factor));
    }
}
