// e^x, ln x, sigmoid and silu: the operations of moe-core's math.rs, one by one, for the same bits.
#pragma once
#include "common.cuh"

#define MOE_NAN __uint_as_float(0x7fc00000u)
#define MOE_INF __uint_as_float(0x7f800000u)

MOE_DEV float moe_exp(float x) {
    float z = __fmaf_rn(x, __uint_as_float(0x3fb8aa3bu), 12582912.0f);
    float n = __fsub_rn(z, 12582912.0f);
    float r = __fmaf_rn(n, -__uint_as_float(0x3f317218u), x);
    r = __fmaf_rn(n, -__uint_as_float(0xb102e308u), r);
    float p = __uint_as_float(0x3ab5121bu);
    p = __fmaf_rn(p, r, __uint_as_float(0x3c091cebu));
    p = __fmaf_rn(p, r, __uint_as_float(0x3d2aac79u));
    p = __fmaf_rn(p, r, __uint_as_float(0x3e2aaa49u));
    p = __fmaf_rn(p, r, __uint_as_float(0x3efffffeu));
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    float y = __uint_as_float(__float_as_uint(p) + (__float_as_uint(z) << 23));
    y = x < __uint_as_float(0xc2aeac4fu) ? 0.0f : y;
    y = x > __uint_as_float(0x42b17217u) ? MOE_INF : y;
    return x != x ? MOE_NAN : y;
}

MOE_DEV float moe_ln(float x) {
    i32 exponent = (i32)(__float_as_uint(x) - 0x3f3504f3u) >> 23;
    float f = __fsub_rn(__uint_as_float(__float_as_uint(x) - ((u32)exponent << 23)), 1.0f);
    float e = (float)exponent;
    float p = __uint_as_float(0x3d8a2ae9u);
    p = __fmaf_rn(p, f, __uint_as_float(0xbdef1dfdu));
    p = __fmaf_rn(p, f, __uint_as_float(0x3df3789au));
    p = __fmaf_rn(p, f, __uint_as_float(0xbdfe110bu));
    p = __fmaf_rn(p, f, __uint_as_float(0x3e119badu));
    p = __fmaf_rn(p, f, __uint_as_float(0xbe2aae26u));
    p = __fmaf_rn(p, f, __uint_as_float(0x3e4cd25bu));
    p = __fmaf_rn(p, f, __uint_as_float(0xbe800003u));
    p = __fmaf_rn(p, f, __uint_as_float(0x3eaaaaa4u));
    float s = __fmul_rn(f, f);
    float y = __fmul_rn(__fmul_rn(p, f), s);
    y = __fmaf_rn(s, -0.5f, y);
    y = __fmaf_rn(e, __uint_as_float(0x35bfbe8eu), y);
    y = __fmaf_rn(e, __uint_as_float(0x3f317200u), __fadd_rn(f, y));
    y = x == MOE_INF ? x : y;
    y = x < __uint_as_float(0x00800000u) ? -MOE_INF : y;
    return x <= -__uint_as_float(0x00800000u) || x != x ? MOE_NAN : y;
}

MOE_DEV float moe_sigmoid(float x) {
    float y = __frcp_rn(__fadd_rn(1.0f, moe_exp(-x))); // rounds as a division does
    return x != x ? MOE_NAN : y;
}

MOE_DEV float moe_silu(float x) {
    float y = __fdiv_rn(x, __fadd_rn(1.0f, moe_exp(-x)));
    return y != y ? MOE_NAN : y;
}
