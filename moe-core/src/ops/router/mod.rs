//! The router: which experts a token goes to, and how much each counts.

mod grad;
mod losses;
mod route;

pub use grad::RouterGrad;
pub use losses::RouterLosses;
pub use route::Route;

use crate::check::Check;
use crate::plan::MAX_INDEX;
use crate::raw::{RawLosses, RawView, RouterGroups, RouterShape};
use crate::tag::Tag;
use crate::{Backend, Error, Float, Result, RouterBackend, Rows, View};

/// How logits become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scoring {
    /// Softmax over all experts, then the top k (Switch Transformers, DeepSeek-V2, Qwen3).
    Softmax,
    /// The top k of the logits, then softmax over those (Mixtral, gpt-oss). The same as
    /// [`Softmax`](Self::Softmax) with [`renormalize`](Router::renormalize), except that a correction bias is added to
    /// the logit.
    SoftmaxOfTopK,
    /// Each expert by itself (DeepSeek-V3).
    Sigmoid,
}

/// A router: logits `[T, E]` to the ids and weights `[T, K]` of each token's experts.
///
/// Experts are taken in descending order of logit, or of score plus correction bias; ties go to the lower id and NaN
/// comes last, so that ids are always distinct and in range. What cannot be computed is defined: a NaN logit weighs 0;
/// infinite logits share the weight evenly; where all of a token's scores are 0, its experts weigh the same.
/// [`raw::RouteArgs`](crate::raw::RouteArgs) has every rule, to the bit.
///
/// ```
/// use moe_core::{Dev, Router, Scoring};
/// use moe_cpu::Cpu;
///
/// let mut queue = Dev::<Cpu>::open(&"cpu".parse()?)?.queue()?;
/// let logits = queue.upload(&[0.0f32, 2.0, 1.0, 2.0, /* token 1 */ 3.0, 0.0, 0.0, 0.0])?;
/// let router = Router::new(4, 2).renormalize();
/// let (ids, weights) = router.route(logits.rows(4)?).run::<f32>(&mut queue)?;
/// assert_eq!(queue.download(ids.view())?, [1, 3, 0, 1]);
/// assert_eq!(queue.download(weights.view())?[..2], [0.5, 0.5]);
///
/// // DeepSeek-V3: the best 4 of 8 groups, chosen with a correction bias that does not enter the weights.
/// let router = Router::new(256, 8).scoring(Scoring::Sigmoid).renormalize().scaling_factor(2.5).groups(8, 4);
/// let (logits, bias) = (queue.zeros::<f32>(256)?, queue.zeros::<f32>(256)?);
/// let (ids, _) = router.route(logits.rows(256)?).correction_bias(bias.view()).run::<f32>(&mut queue)?;
/// assert_eq!(queue.download(ids.view())?, [0, 1, 2, 3, 4, 5, 6, 7]);
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    num_experts: usize,
    top_k: usize,
    scoring: Scoring,
    renormalize: bool,
    scaling_factor: f32,
    groups: Option<RouterGroups>,
}

impl Router {
    /// Softmax over `num_experts` experts, then the `top_k` largest.
    pub fn new(num_experts: usize, top_k: usize) -> Self {
        let scoring = Scoring::Softmax;
        Self { num_experts, top_k, scoring, renormalize: false, scaling_factor: 1.0, groups: None }
    }

    /// How logits become weights.
    pub fn scoring(self, scoring: Scoring) -> Self {
        Self { scoring, ..self }
    }

    /// Divides the weights of a token by their sum (`norm_topk_prob`).
    pub fn renormalize(self) -> Self {
        Self { renormalize: true, ..self }
    }

    /// Multiplies the weights at the end (`routed_scaling_factor`).
    pub fn scaling_factor(self, scaling_factor: f32) -> Self {
        Self { scaling_factor, ..self }
    }

    /// Takes experts from the `topk_group` best of `n_group` groups of consecutive experts only. A group counts as much
    /// as its best expert (DeepSeek-V2), or with a correction bias as the sum of its two best (DeepSeek-V3).
    pub fn groups(self, n_group: usize, topk_group: usize) -> Self {
        Self { groups: Some(RouterGroups { n_group, topk_group }), ..self }
    }

    /// E.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// K.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Takes each token's experts: `logits` `[T, E]`.
    pub fn route<'a, B: RouterBackend, T: Float, G: Tag>(&self, logits: Rows<'a, B, T, G>) -> Route<'a, B, T, G> {
        Route::new(*self, logits)
    }

    /// The load-balancing loss and the z-loss of a batch: `logits` `[T, E]`.
    pub fn losses<'a, B: RouterBackend, T: Float, G: Tag>(
        &self,
        logits: Rows<'a, B, T, G>,
    ) -> RouterLosses<'a, B, T, G> {
        RouterLosses::new(*self, logits)
    }

    /// The gradient of `logits` `[T, E]`, of everything that was made of them.
    pub fn grad<'a, B: RouterBackend, T: Float, G: Tag>(&self, logits: Rows<'a, B, T, G>) -> RouterGrad<'a, B, T, G> {
        RouterGrad::new(*self, logits)
    }

    /// Checks the numbers, and `tokens` and `cols` of the logits.
    fn check<B: Backend>(&self, check: &Check<B>, tokens: usize, cols: usize) -> Result<RouterShape> {
        let Self { num_experts, top_k, scoring, renormalize, scaling_factor, groups } = *self;
        let range = (1..=MAX_INDEX).contains(&num_experts);
        check.number("num_experts", range, format_args!("1 to {MAX_INDEX}"), num_experts)?;
        let expected = format_args!("1 to {num_experts} (num_experts)");
        check.number("top_k", (1..=num_experts).contains(&top_k), expected, top_k)?;
        if !scaling_factor.is_finite() {
            let (expected, got) = ("a finite number".into(), scaling_factor.to_string());
            return Err(Error::InvalidArgument { op: check.op, arg: "scaling_factor", expected, got });
        }
        if let Some(RouterGroups { n_group, topk_group }) = groups {
            let most = RouterGroups::MAX_GROUPS;
            let divides = (1..=most).contains(&n_group) && num_experts.is_multiple_of(n_group);
            let expected = format_args!("1 to {most}, a divisor of {num_experts} (num_experts)");
            check.number("n_group", divides, expected, n_group)?;
            let expected = format_args!("1 to {n_group} (n_group)");
            check.number("topk_group", (1..=n_group).contains(&topk_group), expected, topk_group)?;
            let most = topk_group * (num_experts / n_group);
            let expected = format_args!("at most {most}, the experts of {topk_group} groups");
            check.number("top_k", top_k <= most, expected, top_k)?;
        }
        let expected = format_args!("at most {} (routes are i32)", MAX_INDEX / top_k);
        check.number("number of tokens", tokens <= MAX_INDEX / top_k, expected, tokens)?;
        check.shape("logits", [tokens, num_experts], [tokens, cols])?;
        Ok(RouterShape { num_experts, top_k, scoring, renormalize, scaling_factor, groups })
    }
}

/// What the losses are made of, besides the logits.
#[derive(Debug)]
struct Losses<'a, B: Backend, G: Tag> {
    balance: Option<(View<'a, B, i32, G>, f32)>,
    z: Option<f32>,
}

impl<'a, B: Backend, G: Tag> Losses<'a, B, G> {
    const NONE: Self = Self { balance: None, z: None };

    fn is_none(&self) -> bool {
        self.balance.is_none() && self.z.is_none()
    }

    fn check<'s>(self, check: &Check<B>, shape: &RouterShape) -> Result<RawLosses<'s, B>>
    where
        'a: 's,
    {
        let Self { balance, z } = self;
        for (arg, coefficient) in [("balance coefficient", balance.as_ref().map(|b| b.1)), ("z coefficient", z)] {
            if let Some(got) = coefficient.filter(|c| !c.is_finite()) {
                let expected = "a finite number".into();
                return Err(Error::InvalidArgument { op: check.op, arg, expected, got: got.to_string() });
            }
        }
        let mut balance_scale = 0.0;
        let mut load = None;
        if let Some((view, coefficient)) = balance {
            check.device("load", view.device_id())?;
            check.len("load", shape.num_experts, view.len())?;
            balance_scale = (f64::from(coefficient) * shape.num_experts as f64 / shape.top_k as f64) as f32;
            load = Some(view.into_raw().shorten());
        }
        Ok(RawLosses { load, balance_scale, z_scale: z })
    }
}

/// The device-side count of valid tokens.
fn check_valid<'s, 'a: 's, B: Backend, G: Tag>(
    check: &Check<B>,
    count: Option<View<'a, B, i32, G>>,
) -> Result<Option<RawView<'s, B>>> {
    let Some(count) = count else { return Ok(None) };
    check.device("valid_tokens", count.device_id())?;
    check.len("valid_tokens", 1, count.len())?;
    Ok(Some(count.into_raw().shorten()))
}
