//! What a device says of the kernels that a wish would run.

use super::knobs::{
    COMBINE_LONG_TOKENS, COMBINE_WHOLE_TOKENS, GATHER_AHEAD_BYTES, GATHER_BLOCKS, LISTED_ROUTES, LISTED_ROW_BYTES,
    PERMUTE_GRID_ROUTES, PERMUTE_GRID_TOP_K, SMALL_PERMUTE_ROUTES, SMALL_PLAN_ROUTES, WIDE_PERMUTE_ROUTES,
};
use super::{COMBINE_USUAL_THREADS, PlanSize, Thresholds, Way, combine_cut, combine_is_dense, gather_cut};
use crate::combine::{fast_kernel, usual_kernel};
use crate::ptx::Kernel;
use moe_core::oracle::{Knob, Op, Path, Sizes, Tuned, Wish};
use moe_core::{DType, Layout};

/// The paths of a wish at its typical size, for rows whose addresses and strides are multiples of 16.
pub(crate) fn paths(tuned: &Tuned, wish: &Wish, multiprocessors: u32) -> Vec<Path> {
    let thresholds = Thresholds::new(tuned);
    let from = |knob: &Knob| {
        let origin = if tuned.is_measured(knob) { "measured" } else { "built in" };
        format!("{} {}, {origin}", knob.key, knob.format(tuned.get(knob)))
    };
    let sizes = wish.sizes();
    let size = PlanSize {
        tokens: sizes.typical_tokens,
        top_k: sizes.top_k,
        experts: sizes.num_experts,
        local_experts: sizes.num_local_experts,
        plain: matches!(wish.wanted_layout(), Layout::Packed),
        mapped: sizes.num_local_experts != sizes.num_experts,
    };
    let row_bytes = sizes.hidden_size.saturating_mul(wish.dtype().size());
    let path = |what, taken: String, why| Path { what, taken, why };
    let (plan, gather) = (wish.wanted_ops().contains(&Op::Plan), wish.wanted_ops().contains(&Op::Gather));
    let mut paths = Vec::new();
    if plan {
        let cut = size.plan(&thresholds, multiprocessors);
        let why = format!("{} routes ({})", size.routes(), from(&SMALL_PLAN_ROUTES));
        paths.push(path("plan", blocks(cut.kernel, cut.shape.grid), why));
    }
    if gather {
        let cut = gather_cut(&thresholds, size.tokens, row_bytes, 16, size.plain, multiprocessors);
        let kernel = match cut.usual {
            None => Kernel::GatherV16,
            Some(0) => Kernel::GatherRowsV16,
            Some(_) => Kernel::GatherAheadV16,
        };
        let taken = format!("{}, {} blocks of {} threads a row", kernel.name(), cut.splits, cut.threads);
        let why = format!("{} tokens ({}; {})", size.tokens, from(&GATHER_BLOCKS), from(&GATHER_AHEAD_BYTES));
        paths.push(path("gather", taken, why));
    }
    if plan && gather {
        let (taken, knobs): (String, &[Knob]) = match size.permute(&thresholds, multiprocessors, row_bytes) {
            Way::Together { cut, .. } if cut.kernel == Kernel::PermuteGrid => {
                (blocks(cut.kernel, cut.shape.grid), &[PERMUTE_GRID_ROUTES, PERMUTE_GRID_TOP_K])
            }
            Way::Together { cut, .. } => {
                (blocks(cut.kernel, cut.shape.grid), &[SMALL_PERMUTE_ROUTES, WIDE_PERMUTE_ROUTES])
            }
            Way::Listed(cut) => {
                let list = Kernel::GatherListV16.name();
                (format!("{}, then {list}", blocks(cut.kernel, cut.shape.grid)), &[LISTED_ROUTES, LISTED_ROW_BYTES])
            }
            Way::Apart => ("plan, then gather".into(), &[PERMUTE_GRID_ROUTES, LISTED_ROUTES]),
        };
        let knobs: Vec<String> = knobs.iter().map(from).collect();
        let why = format!("{} routes, rows of {row_bytes} bytes ({})", size.routes(), knobs.join("; "));
        paths.push(path("permute", taken, why));
    }
    if wish.wanted_ops().contains(&Op::Combine) {
        paths.push(combine(&thresholds, sizes, wish.dtype(), multiprocessors, &from));
    }
    paths
}

fn blocks(kernel: Kernel, grid: u32) -> String {
    format!("{}, {grid} blocks", kernel.name())
}

/// Into rows of the same type, or of f32 from f8 rows; with f32 weights and without a residual.
fn combine(
    thresholds: &Thresholds,
    sizes: &Sizes,
    dtype: DType,
    multiprocessors: u32,
    from: &impl Fn(&Knob) -> String,
) -> Path {
    let tokens = sizes.typical_tokens;
    let out = if dtype.is_f8() { DType::F32 } else { dtype };
    let vector = (16 / dtype.size()).min(8);
    let (threads, splits) = combine_cut(thresholds, tokens, sizes.top_k, sizes.hidden_size, vector);
    let dense = combine_is_dense((tokens as u32).saturating_mul(splits), threads, multiprocessors);
    let usual = usual_kernel(dtype, out, sizes.top_k, dense)
        .filter(|_| sizes.hidden_size.is_multiple_of(8) && threads == COMBINE_USUAL_THREADS);
    let kernel = usual.or(fast_kernel(dtype, out)).unwrap_or(Kernel::CombineAny);
    let taken = format!("{}, {splits} blocks of {threads} threads a token", kernel.name());
    let why = format!("{tokens} tokens ({}; {})", from(&COMBINE_WHOLE_TOKENS), from(&COMBINE_LONG_TOKENS));
    Path { what: "combine", taken, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thresholds::KNOBS;
    use moe_core::oracle::TuningTable;

    fn paths_with(table: &str, wish: &Wish) -> Vec<Path> {
        let table: TuningTable = table.parse().unwrap();
        paths(&table.tuned("cuda", "a GPU", KNOBS).unwrap(), wish, 132)
    }

    #[test]
    fn the_paths_of_a_wish_follow_the_table_and_name_the_number_that_decided() {
        let wish = Wish::new(Sizes::new(128, 8, 256, 7_168), DType::BF16);
        let find = |table: &str, what: &str| {
            let found = paths_with(table, &wish).into_iter().find(|path| path.what == what);
            found.unwrap_or_else(|| panic!("{what}"))
        };
        let permute = find("", "permute");
        assert!(permute.taken.starts_with("moe_permute_tiny_wide, "), "{permute:?}");
        assert!(permute.why.contains("1024 routes") && permute.why.contains("built in"), "{permute:?}");
        let permute = find("[cuda: a GPU]\nsmall_permute_routes 1023\nwide_permute_routes 0", "permute");
        assert!(permute.taken.starts_with("moe_permute_grid, "), "{permute:?}");
        let table = "[cuda: a GPU]\nsmall_plan_routes 32";
        assert!(find(table, "plan").why.contains("small_plan_routes 32, measured"), "{:?}", find(table, "plan"));
        assert!(find("", "combine").taken.starts_with("moe_combine_bf16_bf16_k8_r64, 14 blocks"));
        assert!(find("[cuda: a GPU]\ncombine_whole_tokens 127", "combine").taken.contains(" 7 blocks of 64"));
    }

    #[test]
    fn only_what_is_wished_for_has_a_path() {
        let wish = Wish::new(Sizes::new(8, 2, 8, 64), DType::F8E4M3).ops(&[Op::Combine]);
        let paths = paths_with("", &wish);
        assert_eq!(paths.iter().map(|path| path.what).collect::<Vec<_>>(), ["combine"]);
        assert!(paths[0].taken.starts_with("moe_combine_e4m3_f32"), "{paths:?}");
    }
}
