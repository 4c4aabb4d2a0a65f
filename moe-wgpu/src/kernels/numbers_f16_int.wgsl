// f16 in f32 by integer operations, for adapters without SHADER_F16.
fn widen_f16(h: vec4<u32>) -> vec4<f32> {
    let sign = (h & vec4(0x8000u)) << vec4(16u);
    let magnitude = h & vec4(0x7fffu);
    let normal = (magnitude << vec4(13u)) + vec4(0x38000000u);
    let small = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 5.9604644775390625e-8);
    let special = normal + vec4(0x38000000u);
    let finite = select(normal, small, magnitude < vec4(0x400u));
    return bitcast<vec4<f32>>(select(finite, special, magnitude >= vec4(0x7c00u)) | sign);
}
