// f16 in f32 by the adapter's own conversion, for adapters with SHADER_F16. Subnormals may flush.
fn widen_f16(h: vec4<u32>) -> vec4<f32> {
    return vec4(unpack2x16float(h.x | (h.y << 16u)), unpack2x16float(h.z | (h.w << 16u)));
}
