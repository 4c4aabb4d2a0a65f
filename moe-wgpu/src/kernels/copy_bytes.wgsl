// moe_copy_bytes: out[0 .. len] = from[0 .. len], or with FILL every byte of out = value. Any byte offsets.
//
// A thread owns a 32-bit word of out; bytes of the first and last word that lie outside keep their values.

struct Params {
    from_base: u32, // bytes
    out_base: u32,  // bytes
    len: u32,       // bytes
    words: u32,     // words of out that hold them
    value: u32,     // the byte, four times
}

@group(0) @binding(0) var<storage, read> source: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(256)
fn moe_copy_bytes(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 256u;
    if (i >= p.words) { return; }
    let at_word = (p.out_base >> 2u) + i;
    var value = p.value;
    var mask = 0u;
    for (var j = 0u; j < 4u; j++) {
        let offset = at_word * 4u + j - p.out_base; // below the base it wraps past every length
        if (offset >= p.len) { continue; }
        mask |= 0xffu << (j * 8u);
        if (!FILL) {
            let at = p.from_base + offset;
            value = insert(value, j, 1u, extract(source[at >> 2u], at, 1u));
        }
    }
    if (mask == 0xffffffffu) {
        out[at_word] = value;
    } else if (mask != 0u) {
        out[at_word] = (out[at_word] & ~mask) | (value & mask);
    }
}
