//! candle as a peer: what a Rust program has today. Its times include the allocation of its results, as its users pay
//! it; index tensors that a program could keep are made beforehand, and of several ways each is timed.

use crate::Result;
use crate::cases::{Case, Op, Rows};
use crate::routing::Ids;
use crate::stats::Job;
use candle_core::{D, DType, Device, Tensor};
use std::hint::black_box;

/// The version that is linked.
pub const VERSION: &str = "0.11";

/// The tensors of a case.
#[derive(Debug)]
pub struct Candle {
    ids: Tensor,
    top_k: Tensor,
    tokens: Tensor,
    rows: Tensor,
    /// Row → token.
    row_tokens: Tensor,
    /// Route → row.
    slots: Tensor,
    /// `[R, 1]`, in the order of the rows, of their dtype.
    row_weights: Tensor,
    /// `[T, K, 1]`, of the dtype of the rows.
    weights: Tensor,
    shape: (usize, usize, usize),
}

impl Candle {
    /// Whether candle can do a case: all experts local, rows of a dtype that it multiplies.
    pub fn can(case: &Case, ids: &Ids) -> bool {
        ids.expert_map.is_none() && case.rows != Rows::F8
    }

    /// Bytes of memory that it takes beside ours: rows, and results with a weighted copy of the rows.
    pub fn memory(case: &Case) -> usize {
        3 * (case.tokens + case.routes()) * case.model.hidden * case.rows.size()
    }

    /// Makes its tensors.
    ///
    /// # Errors
    /// What candle says.
    pub fn new(case: &Case, ids: &Ids) -> Result<Self> {
        let cpu = Device::Cpu;
        let (tokens, top_k, hidden) = (case.tokens, case.model.top_k, case.model.hidden);
        let routes = case.routes();
        let dtype = match case.rows {
            Rows::F16 => DType::F16,
            Rows::F32 => DType::F32,
            _ => DType::BF16,
        };
        let mut order: Vec<u32> = (0..routes as u32).collect();
        order.sort_by_key(|route| ids.ids[*route as usize]);
        let mut slots = vec![0u32; routes];
        order.iter().enumerate().for_each(|(row, route)| slots[*route as usize] = row as u32);
        let row_tokens: Vec<u32> = order.iter().map(|route| route / top_k as u32).collect();
        let unsigned: Vec<u32> = ids.ids.iter().map(|id| *id as u32).collect();
        let weight = 1.0 / top_k as f64;
        let ones = |shape: &[usize]| Tensor::ones(shape, dtype, &cpu);
        Ok(Self {
            ids: Tensor::from_vec(unsigned, routes, &cpu)?,
            top_k: Tensor::new(top_k as u32, &cpu)?,
            tokens: ones(&[tokens, hidden])?,
            rows: ones(&[routes, hidden])?,
            row_tokens: Tensor::from_vec(row_tokens, routes, &cpu)?,
            slots: Tensor::from_vec(slots, routes, &cpu)?,
            row_weights: (ones(&[routes, 1])? * weight)?,
            weights: (ones(&[tokens, top_k, 1])? * weight)?,
            shape: (tokens, top_k, hidden),
        })
    }

    /// Its ways of doing an operation, by name; none where it has no such thing.
    pub fn ways(&self, op: Op) -> Vec<(&'static str, Job<'_>)> {
        match op {
            Op::Plan => vec![
                ("arg_sort", job(|| self.ids.arg_sort_last_dim(true))),
                ("sort", job(|| self.ids.sort_last_dim(true).map(|(_, order)| order))),
            ],
            Op::Gather => vec![("index_select", job(|| self.tokens.index_select(&self.row_tokens, 0)))],
            Op::Permute => vec![("arg_sort + index_select", job(|| self.permute()))],
            Op::Combine => {
                vec![("index_add", job(|| self.index_add())), ("reshape-multiply-sum", job(|| self.multiply_sum()))]
            }
            Op::CombineGrad => vec![],
        }
    }

    fn permute(&self) -> candle_core::Result<Tensor> {
        let order = self.ids.arg_sort_last_dim(true)?;
        self.tokens.index_select(&order.broadcast_div(&self.top_k)?, 0)
    }

    fn index_add(&self) -> candle_core::Result<Tensor> {
        let weighted = self.rows.broadcast_mul(&self.row_weights)?;
        self.tokens.zeros_like()?.index_add(&self.row_tokens, &weighted, 0)
    }

    fn multiply_sum(&self) -> candle_core::Result<Tensor> {
        let rows = self.rows.index_select(&self.slots, 0)?.reshape(self.shape)?;
        rows.broadcast_mul(&self.weights)?.sum(D::Minus2)
    }
}

fn job<'a>(run: impl Fn() -> candle_core::Result<Tensor> + 'a) -> Job<'a> {
    Job::new(move || {
        black_box(run()?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{Model, RoutingKind};

    #[test]
    fn both_ways_home_give_back_the_tokens_that_were_permuted() {
        let model = Model { name: "small", hidden: 16, experts: 8, top_k: 2 };
        let case = Case { model, tokens: 12, rows: Rows::F32, routing: RoutingKind::Uniform };
        let ids = Ids::new(&case, None).unwrap();
        let mut candle = Candle::new(&case, &ids).unwrap();
        candle.tokens = Tensor::rand(-1f32, 1., (12, 16), &Device::Cpu).unwrap();
        candle.rows = candle.tokens.index_select(&candle.row_tokens, 0).unwrap();
        let tokens = candle.tokens.to_vec2::<f32>().unwrap();
        for home in [candle.index_add().unwrap(), candle.multiply_sum().unwrap()] {
            assert_eq!(home.to_vec2::<f32>().unwrap(), tokens, "weights of 1/2 are exact");
        }
        // candle's sort need not be stable: compare the tokens of each row's expert instead of the rows.
        assert_eq!(candle.permute().unwrap().dims(), [24, 16]);
    }
}
