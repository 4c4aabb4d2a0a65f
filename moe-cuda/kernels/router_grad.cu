// A router's losses and gradient: a warp for each token, lane e mod 32 for expert e. The rules are moe-core's
// raw::RouterLossArgs and raw::RouterGradArgs, to the bit.
#include "router.cuh"

// What each token adds to the losses. Parameters: MoeRouterLossParams.
extern "C" __global__ void __launch_bounds__(128) moe_router_terms(MoeRouterLossParams r) {
    u32 lane = threadIdx.x % 32, t = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (t >= r.tokens) return;
    u64 row = r.logits + t * r.logit_stride;
    float a = 0.0f, z = 0.0f;
    if (t < moe_valid_tokens(r.valid_tokens, r.tokens)) {
        float m = moe_row_max(row, r.experts, r.dtype);
        if (moe_finite(m)) {
            if (r.load) {
                MoeProbs all = moe_row_probs(row, r.experts, r.dtype, r.scoring);
                for (u32 e = lane; e < r.experts; e += 32)
                    a = __fmaf_rn(all.of(moe_logit(row, e, r.dtype)), (float)__ldg((const i32 *)r.load + e), a);
                a = moe_warp_sum(a);
            }
            if (r.has_z) {
                float l = __fadd_rn(m, moe_ln(moe_row_shares(row, r.experts, r.dtype, m)));
                z = __fmul_rn(l, l);
            }
        }
    }
    if (lane == 0) {
        ((float *)r.token_losses)[2 * (u64)t] = a;
        ((float *)r.token_losses)[2 * (u64)t + 1] = z;
    }
}

// The sum of the terms, by one block of 1,024 threads: thread i is lane i. Parameters: MoeRouterLossParams.
extern "C" __global__ void __launch_bounds__(1024) moe_router_losses(MoeRouterLossParams r) {
    __shared__ float lanes[2][1024];
    u32 i = threadIdx.x;
    float a = 0.0f, z = 0.0f;
    for (u64 t = i; t < r.tokens; t += 1024) {
        a = __fadd_rn(a, ((const float *)r.token_losses)[2 * t]);
        z = __fadd_rn(z, ((const float *)r.token_losses)[2 * t + 1]);
    }
    lanes[0][i] = a;
    lanes[1][i] = z;
    for (u32 s = 512; s; s >>= 1) {
        __syncthreads();
        if (i < s) {
            lanes[0][i] = __fadd_rn(lanes[0][i], lanes[0][i + s]);
            lanes[1][i] = __fadd_rn(lanes[1][i], lanes[1][i + s]);
        }
    }
    if (i) return;
    float n = (float)moe_valid_tokens(r.valid_tokens, r.tokens);
    float *out = (float *)r.out;
    out[0] = n > 0.0f ? moe_canonical_f32(__fdiv_rn(__fdiv_rn(__fmul_rn(r.balance_scale, lanes[0][0]), n), n)) : 0.0f;
    out[1] = n > 0.0f ? moe_canonical_f32(__fdiv_rn(__fmul_rn(r.z_scale, lanes[1][0]), n)) : 0.0f;
}

// Route k of token t: its expert, or -1 where the id is none; and the gradient of its weight.
struct MoeRouteGrad {
    i32 id;
    float grad;
};

MOE_DEV MoeRouteGrad moe_route_grad(const MoeRouterGradParams &r, u32 t, u32 k) {
    MoeRouteGrad route = {-1, 0.0f};
    if (k < r.k) {
        i32 id = ((const i32 *)r.ids)[(u64)t * r.k + k];
        route.id = (u32)id < r.experts ? id : -1;
        route.grad = moe_load_any(r.grad_weights, (u64)t * r.k + k, r.weight_dtype);
    }
    return route;
}

// The logit of a route; NaN where the id is none.
MOE_DEV float moe_route_logit(const MoeRouterGradParams &r, u64 row, MoeRouteGrad route) {
    return route.id < 0 ? MOE_NAN : moe_logit(row, (u32)route.id, r.dtype);
}

// Parameters: MoeRouterGradParams.
extern "C" __global__ void __launch_bounds__(128) moe_router_grad(MoeRouterGradParams r) {
    u32 lane = threadIdx.x % 32, t = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (t >= r.tokens) return;
    u64 row = r.logits + t * r.logit_stride, out = r.grad_logits + t * r.grad_logit_stride;
    u32 valid = moe_valid_tokens(r.valid_tokens, r.tokens);
    float m = t < valid ? moe_row_max(row, r.experts, r.dtype) : MOE_NAN;
    if (!moe_finite(m)) {
        for (u32 e = lane; e < r.experts; e += 32) moe_store_any(out, e, r.dtype, 0.0f);
        return;
    }
    bool sigmoid = r.scoring == MOE_SIGMOID, weights = r.ids != 0;
    // Whether the weights are probabilities of their experts, whose gradients go the probabilities' way.
    bool plain = weights && r.scoring == MOE_SOFTMAX && !r.renormalize;
    bool has_g = plain || r.load != 0 || r.grad_probs != 0;
    float n = (float)valid;
    float grads[2] = {1.0f, 1.0f};
    if (r.loss_grads) {
        grads[0] = ((const float *)r.loss_grads)[0];
        grads[1] = ((const float *)r.loss_grads)[1];
    }
    float balance = __fdiv_rn(__fdiv_rn(__fmul_rn(grads[0], r.balance_scale), n), n);
    float z = __fmul_rn(2.0f, __fdiv_rn(__fmul_rn(grads[1], r.z_scale), n));
    const float *grad_probs = (const float *)(r.grad_probs + t * r.grad_prob_stride);
    MoeRouteGrad own = {-1, 0.0f}; // the route of number `lane`
    if (weights) own = moe_route_grad(r, t, lane);

    MoeProbs all;
    all.sigmoid = sigmoid;
    all.m = m;
    all.alike = __fdiv_rn(1.0f, (float)r.experts);
    float shares = r.has_z || (has_g && !sigmoid) ? moe_row_shares(row, r.experts, r.dtype, m) : 0.0f;
    all.sum = sigmoid ? (has_g ? moe_row_scores(row, r.experts, r.dtype) : 0.0f) : shares;

    // The gradient of the probability of expert e. All lanes come here together: routes are handed around.
    auto gradient = [&](u32 e) {
        bool in = e < r.experts;
        float g = in && r.grad_probs ? grad_probs[e] : 0.0f;
        if (in && r.load) g = __fmaf_rn(balance, (float)__ldg((const i32 *)r.load + e), g);
        if (plain)
            for (u32 k = 0; k < r.k; k++) {
                if (r.k > 32 && k % 32 == 0) own = moe_route_grad(r, t, k + lane);
                i32 id = __shfl_sync(MOE_FULL, own.id, k % 32);
                float grad = __shfl_sync(MOE_FULL, own.grad, k % 32);
                if (id == (i32)e) g = __fmaf_rn(r.scaling_factor, grad, g);
            }
        return g;
    };

    float dot = 0.0f;
    if (has_g) {
        for (u32 first = 0; first < r.experts; first += 32) {
            float g = gradient(first + lane);
            if (first + lane < r.experts) dot = __fmaf_rn(all.of(moe_logit(row, first + lane, r.dtype)), g, dot);
        }
        dot = moe_warp_sum(dot);
    }

    // The sums over those taken.
    bool softmax_taken = weights && !sigmoid && !plain, direct = softmax_taken || (weights && sigmoid);
    float taken_m = 0.0f, taken_sum = 0.0f, taken_dot = 0.0f;
    if (direct) {
        if (softmax_taken) {
            u32 most = 0;
            for (u32 k = lane; k < r.k; k += 32)
                most = max(most, moe_order(moe_route_logit(r, row, moe_route_grad(r, t, k))));
            taken_m = moe_order_key(__reduce_max_sync(MOE_FULL, most));
        }
        for (u32 k = lane; k < r.k; k += 32) {
            float x = moe_route_logit(r, row, moe_route_grad(r, t, k));
            taken_sum = __fadd_rn(taken_sum, sigmoid ? moe_score(x) : moe_share(x, taken_m));
        }
        taken_sum = moe_warp_sum(taken_sum);
        if (softmax_taken || r.renormalize) {
            for (u32 k = lane; k < r.k; k += 32) {
                MoeRouteGrad route = moe_route_grad(r, t, k);
                float x = moe_route_logit(r, row, route);
                float q = __fdiv_rn(sigmoid ? moe_score(x) : moe_share(x, taken_m), taken_sum);
                float h = route.id < 0 ? 0.0f : __fmul_rn(r.scaling_factor, route.grad);
                taken_dot = __fmaf_rn(q, h, taken_dot);
            }
            taken_dot = moe_warp_sum(taken_dot);
        }
        if (softmax_taken && !moe_finite(taken_m)) direct = false;
        if (sigmoid && r.renormalize && taken_sum == 0.0f) direct = false;
    }
    float lse = r.has_z ? __fadd_rn(m, moe_ln(shares)) : 0.0f;

    for (u32 first = 0; first < r.experts; first += 32) {
        u32 e = first + lane;
        bool in = e < r.experts;
        float x = in ? moe_logit(row, e, r.dtype) : 0.0f, d = 0.0f;
        if (has_g) {
            float g = gradient(e);
            if (!sigmoid) d = __fmul_rn(all.of(x), __fsub_rn(g, dot));
            else if (all.sum != 0.0f) d = __fdiv_rn(__fsub_rn(g, dot), all.sum);
        }
        if (direct)
            for (u32 k = 0; k < r.k; k++) {
                if (r.k > 32 && k % 32 == 0) own = moe_route_grad(r, t, k + lane);
                i32 id = __shfl_sync(MOE_FULL, own.id, k % 32);
                float h = __fmul_rn(r.scaling_factor, __shfl_sync(MOE_FULL, own.grad, k % 32));
                if (id != (i32)e) continue;
                if (softmax_taken)
                    d = __fmaf_rn(__fdiv_rn(moe_share(x, taken_m), taken_sum), __fsub_rn(h, taken_dot), d);
                else d = __fadd_rn(d, r.renormalize ? __fdiv_rn(__fsub_rn(h, taken_dot), taken_sum) : h);
            }
        if (sigmoid) {
            float s = moe_score(x);
            d = __fmul_rn(d, __fmul_rn(s, __fsub_rn(1.0f, s)));
        }
        if (r.has_z) d = __fmaf_rn(__fmul_rn(z, lse), __fdiv_rn(moe_share(x, m), shares), d);
        if (in) moe_store_any(out, e, r.dtype, x != x ? 0.0f : d);
    }
}
