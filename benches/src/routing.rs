//! Expert ids for a batch: uniform, recorded from a real router, or all to one expert.

use crate::Result;
use crate::cases::{Case, RoutingKind};
use std::path::Path;

/// Experts of the layer whose router was recorded.
const RECORDED_EXPERTS: usize = 32;
/// Choices that it made for each token.
const RECORDED_TOP_K: usize = 4;
/// Layers that were recorded.
const RECORDED_LAYERS: usize = 4;

/// The choices of four real routers with 32 experts and top-4.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// `[T, 4]` of each layer.
    layers: Vec<Vec<u8>>,
}

impl Recorded {
    /// Reads `routing_ids.safetensors` in a folder.
    ///
    /// # Errors
    /// If the file is missing, or is not what it should be.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("routing_ids.safetensors");
        let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let tensors = safetensors::SafeTensors::deserialize(&bytes)?;
        let layer = |l: usize| {
            let tensor = tensors.tensor(&format!("layer{l}.topk_ids"))?;
            Self::checked(tensor.data())
        };
        Ok(Self { layers: (0..RECORDED_LAYERS).map(layer).collect::<Result<_>>()? })
    }

    /// From the `[T, 4]` choices of each layer.
    ///
    /// # Errors
    /// If an id is not below 32, or a layer has no whole token.
    pub fn from_layers(layers: &[&[u8]]) -> Result<Self> {
        Ok(Self { layers: layers.iter().map(|ids| Self::checked(ids)).collect::<Result<_>>()? })
    }

    fn checked(ids: &[u8]) -> Result<Vec<u8>> {
        let whole = !ids.is_empty() && ids.len().is_multiple_of(RECORDED_TOP_K);
        if !whole || ids.iter().any(|id| usize::from(*id) >= RECORDED_EXPERTS) {
            return Err("recorded ids are not [T, 4] below 32".into());
        }
        Ok(ids.to_vec())
    }

    /// The recorded choices as those of a model with `experts` experts and `top_k` of them for each token, distinct
    /// within a token.
    ///
    /// With 32 experts or more, each recorded expert stands for a group of `experts / 32` neighbours, so that the skew
    /// between groups is the recorded one, and a hash of token and layer picks the one in the group; with fewer, `e`
    /// becomes `e % experts`. A token takes its four choices of layer 0, then those of layer 1 and so on, leaving out
    /// what it already has, and at last the next free experts. A batch longer than the recording starts it again.
    pub fn ids(&self, tokens: usize, experts: usize, top_k: usize) -> Vec<i32> {
        assert!(top_k <= experts, "a token has no more distinct experts than there are");
        let mut ids = Vec::with_capacity(tokens * top_k);
        for token in 0..tokens {
            let start = ids.len();
            'token: for (l, layer) in self.layers.iter().enumerate() {
                let at = token % (layer.len() / RECORDED_TOP_K) * RECORDED_TOP_K;
                for choice in &layer[at..at + RECORDED_TOP_K] {
                    let id = map_expert(usize::from(*choice), experts, mix((token * RECORDED_LAYERS + l) as u64));
                    if !ids[start..].contains(&id) {
                        ids.push(id);
                    }
                    if ids.len() - start == top_k {
                        break 'token;
                    }
                }
            }
            let mut next = ids.last().map_or(0, |last| *last as usize);
            while ids.len() - start < top_k {
                next = (next + 1) % experts;
                if !ids[start..].contains(&(next as i32)) {
                    ids.push(next as i32);
                }
            }
        }
        ids
    }
}

/// The expert that stands for a recorded one.
fn map_expert(recorded: usize, experts: usize, hash: u64) -> i32 {
    if experts < RECORDED_EXPERTS {
        return (recorded % experts) as i32;
    }
    let group = recorded * experts / RECORDED_EXPERTS..(recorded + 1) * experts / RECORDED_EXPERTS;
    (group.start + (hash % group.len() as u64) as usize) as i32
}

/// A well-mixed number (the finaliser of SplitMix64).
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform ids, distinct within a token: the first draws of a shuffle.
pub fn uniform(tokens: usize, experts: usize, top_k: usize, seed: u64) -> Vec<i32> {
    assert!(top_k <= experts, "a token has no more distinct experts than there are");
    let mut order: Vec<i32> = (0..experts as i32).collect();
    let mut ids = Vec::with_capacity(tokens * top_k);
    let mut draw = seed;
    for _ in 0..tokens {
        for k in 0..top_k {
            draw += 1;
            order.swap(k, k + (mix(draw) % (experts - k) as u64) as usize);
            ids.push(order[k]);
        }
    }
    ids
}

/// The ids of a case, and its expert map where not all experts are local.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// `[T, K]`.
    pub ids: Vec<i32>,
    /// `[E]`: the local index, -1 elsewhere.
    pub expert_map: Option<Vec<i32>>,
    /// Routes that are local.
    pub local_routes: usize,
    /// Tokens with a local route.
    pub local_tokens: usize,
}

impl Ids {
    /// Makes the ids of a case; the same in every run.
    ///
    /// # Errors
    /// If they are recorded ones, and there is no recording.
    pub fn new(case: &Case, recorded: Option<&Recorded>) -> Result<Self> {
        let (tokens, experts, top_k) = (case.tokens, case.model.experts, case.model.top_k);
        let ids = match case.routing {
            RoutingKind::Uniform | RoutingKind::Ep8 => uniform(tokens, experts, top_k, 0x5eed),
            RoutingKind::Recorded => {
                recorded.ok_or("no recorded ids: --data names the folder with them")?.ids(tokens, experts, top_k)
            }
            RoutingKind::AllToOne => vec![(experts / 2) as i32; tokens * top_k],
        };
        let local = case.local_experts();
        let expert_map = (local != experts)
            .then(|| (0..experts).map(|e| if e < local { e as i32 } else { -1 }).collect::<Vec<i32>>());
        let is_local = |id: &i32| (*id as usize) < local;
        let local_routes = ids.iter().filter(|id| is_local(id)).count();
        let local_tokens = ids.chunks(top_k).filter(|token| token.iter().any(is_local)).count();
        Ok(Self { ids, expert_map, local_routes, local_tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{MODELS, Rows};
    use std::collections::HashSet;

    fn recording() -> Recorded {
        let skewed = |l: u64| -> Vec<u8> {
            // Low experts far more often than high ones, and repeats between layers.
            (0..4 * 97).map(|i| (mix(l * 7919 + i) % (1 + mix(i) % 32)) as u8).collect()
        };
        let layers: Vec<_> = (0..4).map(skewed).collect();
        Recorded::from_layers(&layers.iter().map(|l| &l[..]).collect::<Vec<_>>()).unwrap()
    }

    fn assert_distinct(ids: &[i32], experts: usize, top_k: usize) {
        for token in ids.chunks(top_k) {
            assert!(token.iter().all(|id| (0..experts as i32).contains(id)), "{token:?} of {experts}");
            assert_eq!(token.iter().collect::<HashSet<_>>().len(), top_k, "{token:?}");
        }
    }

    #[test]
    fn recorded_ids_are_distinct_and_in_range_for_every_model_and_odd_sizes() {
        let recorded = recording();
        for (experts, top_k) in [(256, 8), (128, 8), (8, 2), (2, 2), (33, 20), (32, 4), (100, 6), (5, 5)] {
            let ids = recorded.ids(300, experts, top_k); // longer than the recording
            assert_eq!(ids.len(), 300 * top_k);
            assert_distinct(&ids, experts, top_k);
        }
    }

    #[test]
    fn recorded_ids_keep_the_skew_between_the_recorded_experts() {
        let token: Vec<u8> = (0..400).map(|i| [3, 9, 17, 31][i % 4]).collect();
        let recorded = Recorded::from_layers(&[&token]).unwrap();
        let ids = recorded.ids(100, 256, 4);
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(id / 8, [3, 9, 17, 31][i % 4], "route {i}");
        }
        let used: HashSet<_> = ids.iter().collect();
        assert_eq!(used.len(), 32, "every expert of the four groups gets some");
    }

    #[test]
    fn recorded_ids_out_of_range_are_refused() {
        assert!(Recorded::from_layers(&[&[0, 1, 2, 32]]).is_err());
        assert!(Recorded::from_layers(&[&[0, 1, 2]]).is_err());
    }

    #[test]
    fn uniform_ids_are_distinct_and_reach_every_expert() {
        let ids = uniform(2048, 128, 8, 1);
        assert_distinct(&ids, 128, 8);
        let mut counts = [0; 128];
        ids.iter().for_each(|id| counts[*id as usize] += 1);
        assert!(counts.iter().all(|c| (64..192).contains(c)), "{counts:?}");
    }

    #[test]
    fn expert_parallel_ids_count_what_is_local() {
        let case = Case { model: MODELS[0], tokens: 512, rows: Rows::Bf16, routing: RoutingKind::Ep8 };
        let ids = Ids::new(&case, None).unwrap();
        let map = ids.expert_map.unwrap();
        assert_eq!(map.iter().filter(|m| **m >= 0).count(), 32);
        assert_eq!(ids.ids.iter().filter(|id| map[**id as usize] >= 0).count(), ids.local_routes);
        assert!(ids.local_tokens <= ids.local_routes && ids.local_routes < case.routes() / 4);
    }

    #[test]
    fn recorded_routing_without_a_recording_says_which_flag_names_it() {
        let case = Case { model: MODELS[2], tokens: 4, rows: Rows::F32, routing: RoutingKind::Recorded };
        assert!(Ids::new(&case, None).unwrap_err().to_string().contains("--data"));
    }
}
