//! The kernels: their PTX, and the entry points in it.

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) name: &'static str,
    /// For compute capability 8.0 and up.
    pub(crate) sm80: &'static str,
    /// For compute capability 9.0 and up, where the code differs.
    pub(crate) sm90: Option<&'static str>,
}

macro_rules! sm90 {
    ($name:literal) => {
        None
    };
    ($name:literal sm90) => {
        Some(include_str!(concat!("../ptx/", $name, ".sm90.ptx")))
    };
}

macro_rules! sources {
    ($($NAME:ident = $name:literal $($sm90:ident)?;)*) => {
        $(const $NAME: Source = Source {
            name: $name,
            sm80: include_str!(concat!("../ptx/", $name, ".sm80.ptx")),
            sm90: sm90!($name $($sm90)?),
        };)*
        /// All files.
        pub(crate) const SOURCES: &[Source] = &[$($NAME),*];
    };
}

sources! {
    PLAN = "plan";
    KEEP = "keep";
    LOAD = "load";
    MASK = "mask";
    CHUNKS = "chunks";
    BLOCKS = "blocks";
    PERMUTE = "permute";
    GATHER = "gather" sm90;
    COMBINE = "combine";
    COMBINE_GRAD = "combine_grad";
    ROUTER = "router";
    ROUTER_BLOCK = "router_block";
    ROUTER_GRAD = "router_grad";
    TAIL = "tail";
    QUANT = "quant" sm90;
    SWIGLU = "swiglu" sm90;
}

macro_rules! kernels {
    ($($Kernel:ident = $name:literal in $source:ident,)*) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kernel { $($Kernel,)* }

        impl Kernel {
            pub(crate) const ALL: &[Kernel] = &[$(Kernel::$Kernel,)*];

            /// Its entry point.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Kernel::$Kernel => $name,)* }
            }

            /// The file that it is in.
            pub(crate) fn source(self) -> Source {
                match self { $(Kernel::$Kernel => $source,)* }
            }
        }
    };
}

kernels! {
    PlanSmall = "moe_plan_small" in PLAN,
    PlanGrid = "moe_plan_grid" in PLAN,
    KeepByWeight = "moe_keep_by_weight" in KEEP,
    AddLoad = "moe_add_load" in LOAD,
    ExpandMask = "moe_expand_mask" in MASK,
    ScatterMask = "moe_scatter_mask" in MASK,
    ExpandChunksStarts = "moe_expand_chunks_starts" in CHUNKS,
    ExpandChunks = "moe_expand_chunks" in CHUNKS,
    BlockTable = "moe_block_table" in BLOCKS,
    SplitSizes = "moe_split_sizes" in BLOCKS,
    PermuteTiny = "moe_permute_tiny" in PERMUTE,
    PermuteTinyWide = "moe_permute_tiny_wide" in PERMUTE,
    PermuteSmall = "moe_permute_small" in PERMUTE,
    PermuteGrid = "moe_permute_grid" in PERMUTE,
    GatherV16 = "moe_gather_v16" in GATHER,
    GatherRowsV16 = "moe_gather_rows_v16" in GATHER,
    GatherAheadV16 = "moe_gather_ahead_v16" in GATHER,
    GatherListV16 = "moe_gather_list_v16" in GATHER,
    GatherAny = "moe_gather_any" in GATHER,
    GatherWeighted = "moe_gather_weighted" in GATHER,
    CombineAny = "moe_combine_any" in COMBINE,
    CombineF32F32 = "moe_combine_f32_f32" in COMBINE,
    CombineF16F16 = "moe_combine_f16_f16" in COMBINE,
    CombineF16F32 = "moe_combine_f16_f32" in COMBINE,
    CombineBf16Bf16 = "moe_combine_bf16_bf16" in COMBINE,
    CombineBf16F32 = "moe_combine_bf16_f32" in COMBINE,
    CombineF16F16K8 = "moe_combine_f16_f16_k8" in COMBINE,
    CombineF16F16K8R64 = "moe_combine_f16_f16_k8_r64" in COMBINE,
    CombineF16F16K2 = "moe_combine_f16_f16_k2" in COMBINE,
    CombineBf16Bf16K8 = "moe_combine_bf16_bf16_k8" in COMBINE,
    CombineBf16Bf16K8R64 = "moe_combine_bf16_bf16_k8_r64" in COMBINE,
    CombineBf16Bf16K2 = "moe_combine_bf16_bf16_k2" in COMBINE,
    CombineE4m3F32 = "moe_combine_e4m3_f32" in COMBINE,
    CombineE4m3F16 = "moe_combine_e4m3_f16" in COMBINE,
    CombineE4m3Bf16 = "moe_combine_e4m3_bf16" in COMBINE,
    CombineE5m2F32 = "moe_combine_e5m2_f32" in COMBINE,
    CombineE5m2F16 = "moe_combine_e5m2_f16" in COMBINE,
    CombineE5m2Bf16 = "moe_combine_e5m2_bf16" in COMBINE,
    CombineGradF32 = "moe_combine_grad_f32" in COMBINE_GRAD,
    CombineGradF16 = "moe_combine_grad_f16" in COMBINE_GRAD,
    CombineGradBf16 = "moe_combine_grad_bf16" in COMBINE_GRAD,
    CombineGradAny = "moe_combine_grad_any" in COMBINE_GRAD,
    Route128 = "moe_route_128" in ROUTER,
    Route256 = "moe_route_256" in ROUTER,
    Route512 = "moe_route_512" in ROUTER,
    Route128Softmax = "moe_route_128_softmax" in ROUTER,
    Route256Softmax = "moe_route_256_softmax" in ROUTER,
    Route256Grouped = "moe_route_256_grouped" in ROUTER,
    RouteAny = "moe_route_any" in ROUTER,
    RouteBlock = "moe_route_block" in ROUTER_BLOCK,
    RouteBlockSoftmax = "moe_route_block_softmax" in ROUTER_BLOCK,
    RouteBlockGrouped = "moe_route_block_grouped" in ROUTER_BLOCK,
    RouterTerms = "moe_router_terms" in ROUTER_GRAD,
    RouterLosses = "moe_router_losses" in ROUTER_GRAD,
    RouterGrad = "moe_router_grad" in ROUTER_GRAD,
    ZeroTail = "moe_zero_tail" in TAIL,
    GatherQuantPerToken = "moe_gather_quant_per_token" in QUANT,
    GatherQuantBlock128 = "moe_gather_quant_block128" in QUANT,
    GatherQuantMxfp8 = "moe_gather_quant_mxfp8" in QUANT,
    GatherQuantNvfp4 = "moe_gather_quant_nvfp4" in QUANT,
    SwigluQuantPerToken = "moe_swiglu_quant_per_token" in SWIGLU,
    SwigluQuantBlock128 = "moe_swiglu_quant_block128" in SWIGLU,
    SwigluQuantMxfp8 = "moe_swiglu_quant_mxfp8" in SWIGLU,
    SwigluQuantNvfp4 = "moe_swiglu_quant_nvfp4" in SWIGLU,
    Swiglu = "moe_swiglu" in SWIGLU,
}

impl Kernel {
    /// Whether it takes more dynamic shared memory than every GPU gives without asking.
    pub(crate) fn wants_shared_memory(self) -> bool {
        use Kernel::*;
        matches!(self, PlanSmall | PlanGrid | PermuteTiny | PermuteTinyWide | PermuteSmall | PermuteGrid | BlockTable)
    }
}

/// The SHA-256 of every PTX file and of the sources it was compiled from, as `sha256sum` writes them: what figures that
/// were measured with these kernels are filed under.
pub const SHA256SUMS: &str = include_str!("../ptx/SHA256SUMS");

/// The newest PTX ISA that the kernels cannot do without.
pub(crate) fn isa() -> (u32, u32) {
    SOURCES.iter().filter_map(|source| version(source.sm80)).max().unwrap_or((0, 0))
}

/// The `.version` of a PTX text.
fn version(ptx: &str) -> Option<(u32, u32)> {
    let line = ptx.lines().find_map(|line| line.strip_prefix(".version "))?;
    let (major, minor) = line.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::collections::BTreeSet;
    use std::path::Path;

    fn entries(ptx: &str) -> BTreeSet<&str> {
        let names = ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry "));
        names.map(|rest| rest.split('(').next().unwrap()).collect()
    }

    #[test]
    fn every_kernel_named_here_is_an_entry_point_of_its_file() {
        for kernel in Kernel::ALL {
            let source = kernel.source();
            for text in [Some(source.sm80), source.sm90].into_iter().flatten() {
                assert!(entries(text).contains(kernel.name()), "{kernel:?}");
            }
        }
    }

    #[test]
    fn every_entry_point_is_named_here() {
        let ours: BTreeSet<&str> = Kernel::ALL.iter().map(|k| k.name()).collect();
        let theirs: BTreeSet<&str> = SOURCES.iter().flat_map(|source| entries(source.sm80)).collect();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn every_file_names_its_isa_and_base_target() {
        for source in SOURCES {
            assert!(version(source.sm80).is_some(), "{}", source.name);
            assert!(source.sm80.lines().any(|line| line == ".target sm_80"), "{}", source.name);
            if let Some(text) = source.sm90 {
                assert!(text.lines().any(|line| line == ".target sm_90"), "{}", source.name);
            }
        }
    }

    #[test]
    fn every_committed_file_is_one_that_is_loaded() {
        let listed = SHA256SUMS.lines().filter_map(|line| line.split_once("  ptx/")).map(|(_, name)| name.to_owned());
        let named = SOURCES.iter().flat_map(|source| {
            let hopper = source.sm90.map(|_| format!("{}.sm90.ptx", source.name));
            [Some(format!("{}.sm80.ptx", source.name)), hopper].into_iter().flatten()
        });
        assert_eq!(listed.collect::<BTreeSet<_>>(), named.collect::<BTreeSet<_>>());
    }

    /// PTX that was not compiled from the sources beside it.
    #[test]
    fn the_ptx_belongs_to_these_sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        if !root.join("kernels").exists() {
            println!("skipped: the sources are not on this machine");
            return;
        }
        let mut listed = BTreeSet::new();
        for line in SHA256SUMS.lines() {
            let (sum, path) = line.split_once("  ").unwrap();
            let digest = Sha256::digest(std::fs::read(root.join(path)).unwrap());
            let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, sum, "{path}: run `cargo xtask ptx`");
            listed.insert(path.to_owned());
        }
        for (folder, endings) in [("kernels", &["cu", "cuh"][..]), ("ptx", &["ptx"])] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if endings.iter().any(|e| name.rsplit('.').next() == Some(e)) {
                    assert!(listed.contains(&format!("{folder}/{name}")), "{folder}/{name} is not in SHA256SUMS");
                }
            }
        }
    }
}
