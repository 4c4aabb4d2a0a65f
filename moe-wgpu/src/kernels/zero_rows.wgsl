// moe_zero_rows: zeroes rows of out [R, H]: by zero_rows_plan.wgsl the padding rows below the last expert offset
// (source -1), or with TAIL those from the last expert offset on; by zero_rows_all.wgsl all. Other rows, and bytes between
// rows, keep their values.
//
// moe_zero_rows_vec: a workgroup takes a row; bases, strides and lengths are multiples of 16 bytes.
// moe_zero_rows_words: a thread owns a 32-bit word of out and writes those of its bytes that belong to such a row.
//
// Constants: TAIL, Unit.

struct Params {
    source: u32,     // word of the plan where the array begins
    used: u32,       // word of the plan that holds the number of rows in use
    routes: u32,
    row_first: u32,
    row_count: u32,
    out_base: u32,   // in units of the variant: 16 bytes, or bytes
    out_stride: u32,
    row_len: u32,
    words: u32,      // moe_zero_rows_words: words of out that hold the window
}

@group(0) @binding(0) var<storage, read_write> out: array<Unit>;
@group(0) @binding(1) var<uniform> p: Params;
