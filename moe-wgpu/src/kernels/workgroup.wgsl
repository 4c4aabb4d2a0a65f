// What a workgroup does together, without subgroups.

struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
}

// Not assumed to be zero: each element is written before it is read.
var<workgroup> sums: array<u32, THREADS>;

// The number of this thread. Every thread calls it first.
fn begin_threads(i: Invocation) -> u32 {
    return i.index;
}

struct Scanned {
    through: u32, // the sum over the threads up to and including this one
    all: u32,
}

fn scan(thread: u32, value: u32) -> Scanned {
    workgroupBarrier();
    sums[thread] = value;
    for (var step = 1u; step < THREADS; step <<= 1u) {
        workgroupBarrier();
        var before = 0u;
        if (thread >= step) { before = sums[thread - step]; }
        workgroupBarrier();
        sums[thread] += before;
    }
    workgroupBarrier();
    return Scanned(sums[thread], sums[THREADS - 1u]);
}
