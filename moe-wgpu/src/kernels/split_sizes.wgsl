// moe_split_sizes: out[r] = rows of the `experts` local experts of rank r, padding included. i32 [ranks].

struct Params {
    ranks: u32,
    experts: u32,  // local experts of a rank
    offsets: u32,  // word of the plan where the array begins
    out_base: u32, // words
}

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(256)
fn moe_split_sizes(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let r = id.x + id.y * groups.x * 256u;
    if (r >= p.ranks) { return; }
    let at = p.offsets + r * p.experts;
    out[p.out_base + r] = plan[at + p.experts] - plan[at];
}
