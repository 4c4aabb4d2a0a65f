// What a workgroup does together, by subgroups of any size, full or not.

struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

// Not assumed to be zero: each element is written before it is read. There are at most as many subgroups as threads.
var<workgroup> sums: array<u32, THREADS>;
var<private> own_subgroup: u32;
var<private> subgroups: u32;
var<private> own_lane: u32;
var<private> leads: bool; // one lane of each subgroup

// The number of this thread: subgroup after subgroup, in each by lane. Every thread calls it first.
fn begin_threads(i: Invocation) -> u32 {
    own_subgroup = i.subgroup;
    subgroups = i.subgroups;
    own_lane = i.lane;
    leads = subgroupInclusiveAdd(1u) == 1u;
    return scan(0u, 1u).through - 1u;
}

struct Scanned {
    through: u32, // the sum over the threads up to and including this one
    all: u32,
}

fn scan(thread: u32, value: u32) -> Scanned {
    let within = subgroupInclusiveAdd(value);
    let whole = subgroupAdd(value);
    workgroupBarrier();
    if (leads) { sums[own_subgroup] = whole; }
    workgroupBarrier();
    var before = 0u;
    var all = 0u;
    for (var s = 0u; s < subgroups; s++) {
        let sum = sums[s];
        if (s < own_subgroup) { before += sum; }
        all += sum;
    }
    return Scanned(before + within, all);
}
