// moe_add_load: sums[e] += load[e], u32 [E].

struct Params {
    experts: u32,
    load_base: u32, // words
    sums_base: u32,
}

@group(0) @binding(0) var<storage, read> load: array<u32>;
@group(0) @binding(1) var<storage, read_write> sums: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(256)
fn moe_add_load(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let e = id.x + id.y * groups.x * 256u;
    if (e < p.experts) { sums[p.sums_base + e] += load[p.load_base + e]; }
}
