//! What every cut must hold to, whatever the sizes.

use super::*;
use moe_core::oracle::{Knob, KnobKind, TuningTable};

const ROW_BYTES: [usize; 8] = [2, 4_096, 8_176, 8_192, 8_208, 14_336, MOST_ROW_BYTES, MOST_ROW_BYTES + 16];
const TOP_KS: [usize; 13] = [1, 2, 3, 4, 8, 31, 32, 33, 64, 128, 255, 256, 300];
const EXPERTS: [usize; 8] = [1, 7, 8, 64, 256, 257, 1_023, 4_096];

fn size(tokens: usize, top_k: usize, experts: usize) -> PlanSize {
    PlanSize { tokens, top_k, experts, local_experts: experts, plain: true, mapped: false }
}

/// Numbers of tokens around each power of two and each threshold, up to 2^21 routes.
fn tokens(top_k: usize) -> impl Iterator<Item = usize> {
    let powers = (0..=21).map(|power| 1usize << power);
    let routes = powers.chain([65_535 * 14, 65_535 * 16, 1_500_000]);
    routes.flat_map(move |n| [n / top_k, n / top_k + 1].into_iter().filter(move |t| *t > 0 && t * top_k <= 1 << 21))
}

/// Sizes of every kind, the kinds of layout and map among them.
fn sizes() -> impl Iterator<Item = PlanSize> {
    TOP_KS.into_iter().flat_map(|top_k| {
        tokens(top_k).flat_map(move |tokens| {
            EXPERTS.into_iter().flat_map(move |experts| {
                [(true, false, 1), (false, false, 1), (true, true, 8), (false, true, 3)].into_iter().map(
                    move |(plain, mapped, of)| PlanSize {
                        plain,
                        mapped,
                        local_experts: experts.div_ceil(of),
                        ..size(tokens, top_k, experts)
                    },
                )
            })
        })
    })
}

/// The rules of `kernels/ABI.md` for one launch.
fn check(size: &PlanSize, cut: &PlanCut, splits: Option<u32>, multiprocessors: u32) {
    let what = || format!("{size:?}, {multiprocessors} multiprocessors: {cut:?}, {splits:?}");
    let (n, k) = (size.routes(), size.top_k);
    let (grid, chunk) = (cut.shape.grid as usize, cut.chunk_tokens as usize);
    let (ep, xp) = (size.local_experts.next_multiple_of(8), size.experts.next_multiple_of(8));
    let warps = cut.rank_warps as usize & !3;
    assert!((4..=32).contains(&warps) && (cut.rank_warps as usize) <= 32, "{}", what());
    assert!(cut.share >= 1 && splits != Some(0) && grid >= 1, "{}", what());
    let chunks = grid / cut.share as usize;
    match cut.kernel {
        Kernel::PermuteTiny | Kernel::PermuteTinyWide | Kernel::PermuteSmall => {
            let tiny = cut.kernel != Kernel::PermuteSmall;
            assert!(k <= 32 && (!tiny || (size.plain && n <= 65_535)), "{}", what());
            let blocks = size.tokens * splits.unwrap() as usize + usize::from(tiny);
            assert_eq!((grid, cut.shape.cooperative), (blocks, false), "{}", what());
            assert_eq!(cut.shape.block, if cut.kernel == Kernel::PermuteTinyWide { 512 } else { 256 }, "{}", what());
            assert!(splits.unwrap().is_power_of_two(), "{}", what());
            assert_eq!(cut.shape.shared as usize, 8 * ep + 4 * xp, "{}", what());
            return;
        }
        Kernel::PermuteGrid => {
            assert!(cut.shape.cooperative && splits.unwrap().is_power_of_two(), "{}", what());
            assert!(cut.share.is_power_of_two(), "{}", what());
            assert!(cut.share == 1 || chunk * k <= warps * 32, "chunks of one round are shared alone: {}", what());
        }
        Kernel::PlanGrid => assert!(cut.shape.cooperative && cut.share == 1, "{}", what()),
        Kernel::PlanSmall => assert!(!cut.shape.cooperative && cut.share == 1, "{}", what()),
        other => panic!("{other:?} makes no plan"),
    }
    assert_eq!(cut.shape.block, 1024);
    assert_eq!(cut.shape.shared as usize, 8 * ep + 2 * (cut.rank_warps as usize + 1) * ep + 4 * xp, "{}", what());
    // The list is numbered in the memory of the warps' counts.
    assert!(2 * (cut.rank_warps as usize + 1) * ep >= 4 * size.local_experts, "{}", what());
    assert!(grid % cut.share as usize == 0 && chunks * chunk >= size.tokens, "{}", what());
    assert!((chunks - 1) * chunk < size.tokens.max(1), "a chunk is empty: {}", what());
    if cut.shape.cooperative {
        assert!(grid <= multiprocessors as usize, "all blocks must run at once: {}", what());
        assert!(chunk * k <= 65_535, "counts have 16 bits: {}", what());
    }
}

/// The built-in values, and others within the knobs' bounds: all least, all greatest, mixed, and what is worth measuring.
fn tables() -> Vec<Thresholds> {
    let set = |value: &dyn Fn(usize, &Knob) -> usize| {
        let mut table = TuningTable::new();
        for (i, knob) in KNOBS.iter().enumerate() {
            table.set("cuda", "a GPU", knob, value(i, knob), "").unwrap();
        }
        Thresholds::new(&table.tuned("cuda", "a GPU", KNOBS).unwrap())
    };
    let bounds = |knob: &Knob| match knob.kind {
        KnobKind::Number { min, max } => (min, max),
        KnobKind::Choice(words) => (0, words.len() - 1),
    };
    let mut tables = vec![Thresholds::default(), set(&|_, knob| bounds(knob).0), set(&|_, knob| bounds(knob).1)];
    for round in 0..3 {
        tables.push(set(&|i, knob| if (i + round) % 3 < 2 { bounds(knob).0 } else { bounds(knob).1 }));
        tables.push(set(&|i, knob| knob.candidates[(i * 7 + round) % knob.candidates.len()]));
    }
    tables
}

/// All sizes with the built-in values, every eleventh with the others.
fn tuned_sizes() -> impl Iterator<Item = (Thresholds, PlanSize)> {
    tables()
        .into_iter()
        .enumerate()
        .flat_map(|(i, tuned)| sizes().skip(i).step_by(if i == 0 { 1 } else { 11 }).map(move |size| (tuned, size)))
}

#[test]
fn every_cut_is_within_the_limits_of_its_kernel_whatever_is_tuned() {
    let mut seen = [false; 6];
    for multiprocessors in [1, 14, 132, 148] {
        for (tuned, size) in tuned_sizes() {
            check(&size, &size.plan(&tuned, multiprocessors), None, multiprocessors);
            for row_bytes in ROW_BYTES {
                match size.permute(&tuned, multiprocessors, row_bytes) {
                    Way::Together { cut, splits } => {
                        check(&size, &cut, Some(splits), multiprocessors);
                        let parts = splits as usize * row_bytes / 16;
                        assert!(parts < 1 << 32, "parts are numbered with 32 bits: {size:?} {row_bytes} {splits}");
                        let at =
                            [Kernel::PermuteTiny, Kernel::PermuteSmall, Kernel::PermuteGrid, Kernel::PermuteTinyWide];
                        seen[at.iter().position(|kernel| *kernel == cut.kernel).unwrap()] = true;
                    }
                    Way::Listed(cut) => {
                        assert_eq!(cut.kernel, Kernel::PlanGrid, "the one that makes lists");
                        assert!(!size.mapped);
                        check(&size, &cut, None, multiprocessors);
                        seen[4] = true;
                    }
                    Way::Apart => seen[5] = true,
                }
            }
        }
    }
    assert_eq!(seen, [true; 6], "every way is taken");
}

/// A workspace for limits serves every batch within them, whichever kernel it takes and whatever is tuned meanwhile, and
/// no table reaches the list of any other batch.
#[test]
fn scratch_holds_every_table_and_list_within_its_limits_apart() {
    for multiprocessors in [1, 14, 132] {
        for (max_routes, max_experts) in [(1, 1), (32, 256), (33, 7), (1_024, 8), (32_767, 4_096), (1 << 21, 4_096)] {
            let have = scratch_bytes(max_routes, max_experts, multiprocessors);
            let (mut tables, mut lists) = (0, sorted_in_scratch(have, max_routes).start);
            let fits = |size: &PlanSize| size.routes() <= max_routes && size.experts <= max_experts;
            for (tuned, size) in tuned_sizes().filter(|(_, size)| fits(size)) {
                let mut table = |cut: &PlanCut| {
                    if cut.shape.cooperative {
                        let row = size.local_experts.next_multiple_of(8) + size.experts.next_multiple_of(8) + 4;
                        tables = tables.max(256 + 4 * (cut.shape.grid / cut.share) as usize * row);
                    }
                };
                table(&size.plan(&tuned, multiprocessors));
                for row_bytes in ROW_BYTES {
                    match size.permute(&tuned, multiprocessors, row_bytes) {
                        Way::Together { cut, .. } => table(&cut),
                        Way::Listed(cut) => {
                            table(&cut);
                            let list = list_in_scratch(have, size.routes());
                            let keep = keep_in_scratch(have, size.routes());
                            assert!(list.end <= keep.start && keep.end <= have && keep.len() == size.routes());
                            assert!(list.start.is_multiple_of(8) && list.len() == 8 * size.routes());
                            lists = lists.min(list.start);
                        }
                        Way::Apart => {}
                    }
                }
            }
            assert!(tables <= lists, "{max_routes} routes, {max_experts} experts: {tables} of {lists}, {have}");
        }
    }
}

#[test]
fn scratch_never_shrinks_as_limits_grow() {
    for multiprocessors in [1, 14, 132] {
        let routes = [0, 1, 32, 33, 131, 132, 1_024, 32_767, 32_768, 65_535 * 132, 65_535 * 132 + 1, i32::MAX as usize];
        let bytes = |routes, experts| scratch_bytes(routes, experts, multiprocessors);
        for experts in [1, 8, 9, 4_096] {
            assert!(routes.windows(2).all(|w| bytes(w[0], experts) <= bytes(w[1], experts)));
            assert!(routes.iter().all(|n| bytes(*n, experts) <= bytes(*n, experts + 1)));
        }
    }
}

#[test]
fn a_plan_of_no_tokens_is_still_launched_and_no_row_is_moved() {
    let cut = size(0, 8, 256).plan(&Thresholds::default(), 132);
    assert_eq!((cut.kernel, cut.shape.grid, cut.chunk_tokens), (Kernel::PlanSmall, 1, 1));
    assert_eq!(size(0, 8, 256).permute(&Thresholds::default(), 132, 14_336), Way::Apart);
}

/// More routes, or a larger top_k, than the exchange of 16-bit counts takes.
#[test]
fn plans_too_long_for_the_exchange_count_all_ids() {
    for (tokens, top_k, kernel) in [
        (65_535 * 132, 1, Kernel::PlanGrid),
        (65_535 * 132 + 1, 1, Kernel::PlanSmall),
        (2, 65_535, Kernel::PlanGrid),
        (2, 65_536, Kernel::PlanSmall),
    ] {
        let size = size(tokens, top_k, 256);
        let cut = size.plan(&Thresholds::default(), 132);
        assert_eq!(cut.kernel, kernel, "{tokens} x {top_k}");
        check(&size, &cut, None, 132);
        if kernel == Kernel::PlanSmall {
            assert_eq!(size.permute(&Thresholds::default(), 132, 14_336), Way::Apart);
        }
    }
}

/// The choices of `kernels/ABI.md` for the models that were measured.
#[test]
fn measured_sizes_take_the_path_that_was_fastest() {
    let way = |tokens, top_k, experts, row_bytes| match size(tokens, top_k, experts).permute(
        &Thresholds::default(),
        132,
        row_bytes,
    ) {
        Way::Together { cut, splits } => (cut.kernel.name(), splits as usize, cut.share as usize),
        Way::Listed(cut) => ("listed", cut.chunk_tokens as usize, 1),
        Way::Apart => ("apart", 0, 0),
    };
    assert_eq!(way(1, 8, 256, 14_336), ("moe_permute_tiny", 4, 1));
    assert_eq!(way(64, 8, 256, 14_336), ("moe_permute_tiny", 4, 1));
    assert_eq!(way(65, 8, 256, 14_336), ("moe_permute_tiny_wide", 1, 1));
    assert_eq!(way(256, 8, 128, 4_096), ("moe_permute_tiny_wide", 1, 1));
    assert_eq!(way(257, 8, 256, 14_336), ("moe_permute_grid", 2, 8));
    assert_eq!(way(512, 8, 256, 14_336), ("moe_permute_grid", 2, 8));
    assert_eq!(way(1_024, 8, 128, 4_096), ("moe_permute_grid", 1, 4));
    assert_eq!(way(4_096, 8, 256, 14_336), ("apart", 0, 0));
    assert_eq!(way(16_384, 8, 256, 14_336), ("listed", 256, 1));
    assert_eq!(way(16_384, 8, 128, 4_096), ("apart", 0, 0));
    assert_eq!(way(512, 2, 8, 8_192), ("moe_permute_tiny", 1, 1));
    assert_eq!(way(1_024, 2, 8, 8_192), ("moe_permute_grid", 1, 16));
    assert_eq!(way(16_384, 2, 8, 8_192), ("apart", 0, 0));
    let mapped = PlanSize { mapped: true, ..size(16_384, 8, 256) };
    assert_eq!(mapped.permute(&Thresholds::default(), 132, 14_336), Way::Apart);
}

#[test]
fn a_row_is_cut_only_while_tokens_alone_do_not_fill_the_device() {
    let tuned = Thresholds::default();
    assert_eq!(gather_cut(&tuned, 1, 14_336, 16, true, 132), GatherCut { threads: 256, splits: 4, usual: None });
    assert_eq!(gather_cut(&tuned, 264, 14_336, 16, true, 132), GatherCut { threads: 256, splits: 1, usual: Some(0) });
    assert_eq!(combine_cut(&tuned, 256, 8, 7_168, 8), (64, 14));
    assert_eq!(combine_cut(&tuned, 256, 2, 7_168, 8), (64, 7));
    assert_eq!(combine_cut(&tuned, 257, 8, 7_168, 8), (64, 7));
    assert_eq!(combine_cut(&tuned, 2_048, 8, 2_048, 8), (64, 2));
    assert_eq!(combine_cut(&tuned, 2_049, 8, 2_048, 8), (64, 4));
    assert_eq!(combine_cut(&tuned, 8_193, 2, 4_096, 8), (64, 4));
    assert_eq!(combine_cut(&tuned, 8_193, 8, 7_168, 8), (64, 7));
    assert_eq!(combine_cut(&tuned, 8_193, 8, 1, 4), (64, 1));
    assert_eq!(combine_cut(&tuned, 8_193, 8, 512, 8), (64, 1));
    for tuned in tables() {
        for tokens in [1, 256, 8_192, i32::MAX as usize] {
            let (threads, splits) = combine_cut(&tuned, tokens, 1, i32::MAX as usize, 4);
            assert!(splits >= 1 && splits as usize * tokens <= i32::MAX as usize, "{tokens}: {splits}");
            assert!(threads.is_multiple_of(32) && (32..=256).contains(&threads), "{threads}");
        }
    }
    assert_eq!(combine_any_cut(1, 7_168, 132), (256, 28));
    assert_eq!(combine_any_cut(528, 7_168, 132), (256, 1));
}

/// Sizes of qwen3 at which one of the two kernels was measured to be faster.
#[test]
fn a_combine_takes_few_registers_where_that_makes_one_wave_of_several() {
    for (grid, dense) in
        [(4, false), (132, false), (133, true), (512, true), (2_048, true), (2_112, true), (2_113, false)]
    {
        assert_eq!(combine_is_dense(grid, 64, 132), dense, "{grid}");
    }
    assert!(!combine_is_dense(1_100, 128, 132) && combine_is_dense(1_000, 128, 132));
}
