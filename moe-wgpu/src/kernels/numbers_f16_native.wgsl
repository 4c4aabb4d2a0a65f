// f16 in f32 by the adapter's own f16; needs `enable f16`. Subnormals may flush.
fn widen_f16(h: vec4<u32>) -> vec4<f32> {
    let low = bitcast<vec2<f16>>(h.x | (h.y << 16u));
    let high = bitcast<vec2<f16>>(h.z | (h.w << 16u));
    return vec4<f32>(vec2<f32>(low), vec2<f32>(high));
}
