// moe_plan_overflow: status[4] = overflow[0], for plans whose ids come from a mask.

struct Params {
    over_base: u32, // words
    status: u32,    // word of the plan where the array begins
}

@group(0) @binding(0) var<storage, read> over: array<u32>;
@group(0) @binding(1) var<storage, read_write> plan: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(1)
fn moe_plan_overflow() {
    plan[p.status + 4u] = over[p.over_base];
}
