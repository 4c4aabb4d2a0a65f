// Element types in f32 and back, by integer operations, so that every adapter has every type and NaN never meets the
// compiler's idea of arithmetic. Four elements at a time; `bits` holds each element in the low bits of a lane.
//
// Rounding is to the nearest value, ties to even. NaN results are canonical: 0x7fc00000, 0x7fc0 (bf16), 0x7e00 (f16).
// `widen_f16` comes from numbers_f16_int.wgsl or numbers_f16_native.wgsl.

const F32: u32 = 0u;
const F16: u32 = 1u;
const BF16: u32 = 2u;
const E4M3: u32 = 3u;
const E5M2: u32 = 4u;

// Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, NaN is all ones.
fn widen_e4m3(b: vec4<u32>) -> vec4<f32> {
    let sign = (b & vec4(0x80u)) << vec4(24u);
    let magnitude = b & vec4(0x7fu);
    let normal = (magnitude << vec4(20u)) + vec4(0x3c000000u);
    let small = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 0.001953125);
    let finite = select(normal, small, magnitude < vec4(8u));
    return bitcast<vec4<f32>>(select(finite, vec4(0x7fc00000u), magnitude == vec4(0x7fu)) | sign);
}

fn widen(dtype: u32, bits: vec4<u32>) -> vec4<f32> {
    if (dtype == F32) { return bitcast<vec4<f32>>(bits); }
    if (dtype == BF16) { return bitcast<vec4<f32>>(bits << vec4(16u)); }
    if (dtype == F16) { return widen_f16(bits); }
    if (dtype == E4M3) { return widen_e4m3(bits); }
    return widen_f16(bits << vec4(8u)); // e5m2 is the upper half of an f16
}

fn widen1(dtype: u32, bits: u32) -> f32 {
    return widen(dtype, vec4(bits)).x;
}

fn narrow_f16(magnitude: vec4<u32>) -> vec4<u32> {
    let even = (magnitude >> vec4(13u)) & vec4(1u);
    let normal = (magnitude - vec4(0x38000000u) + vec4(0xfffu) + even) >> vec4(13u);
    // Below 2^-14 the result is subnormal: shift the whole mantissa right, then round by what fell off. Shifts stay
    // below 32: from 2^-25 down everything becomes zero anyway.
    let mantissa = (magnitude & vec4(0x7fffffu)) | vec4(0x800000u);
    let shift = vec4(126u) - clamp(magnitude >> vec4(23u), vec4(101u), vec4(112u));
    let kept = mantissa >> shift;
    let lost = mantissa & ((vec4(1u) << shift) - vec4(1u));
    let half = vec4(1u) << (shift - vec4(1u));
    let up = (lost > half) | ((lost == half) & ((kept & vec4(1u)) == vec4(1u)));
    let small = kept + select(vec4(0u), vec4(1u), up);
    let finite = select(normal, select(small, vec4(0u), magnitude <= vec4(0x33000000u)), magnitude < vec4(0x38800000u));
    return select(finite, vec4(0x7c00u), magnitude >= vec4(0x477ff000u)); // 65520 and above round to infinity
}

fn narrow(dtype: u32, x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4(0x7fffffffu);
    let nan = magnitude > vec4(0x7f800000u);
    if (dtype == F32) { return select(bits, vec4(0x7fc00000u), nan); }
    let sign = (bits >> vec4(16u)) & vec4(0x8000u);
    if (dtype == BF16) {
        let rounded = (bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u))) >> vec4(16u);
        return select(rounded, vec4(0x7fc0u), nan);
    }
    return select(narrow_f16(magnitude) | sign, vec4(0x7e00u), nan);
}

fn narrow1(dtype: u32, x: f32) -> u32 {
    return narrow(dtype, vec4(x)).x;
}

// The element of `size` bytes (1, 2 or 4) at byte `at` of a word array whose word `at / 4` is given.
fn extract(word: u32, at: u32, size: u32) -> u32 {
    if (size == 4u) { return word; }
    return (word >> ((at & 3u) * 8u)) & ((1u << (size * 8u)) - 1u);
}

// The word with the element at byte `at` replaced.
fn insert(word: u32, at: u32, size: u32, bits: u32) -> u32 {
    if (size == 4u) { return bits; }
    let shift = (at & 3u) * 8u;
    let mask = ((1u << (size * 8u)) - 1u) << shift;
    return (word & ~mask) | ((bits << shift) & mask);
}
