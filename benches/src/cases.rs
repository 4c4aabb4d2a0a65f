//! What is measured: models, operations, element types and routings, and the bytes each operation moves.

use std::fmt;
use std::str::FromStr;

/// The sizes of a Mixture-of-Experts layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// The name in tables.
    pub name: &'static str,
    /// H, elements of a row.
    pub hidden: usize,
    /// E, experts.
    pub experts: usize,
    /// K, experts of a token.
    pub top_k: usize,
}

/// The models that are measured.
pub const MODELS: [Model; 3] = [
    Model { name: "dsv3", hidden: 7168, experts: 256, top_k: 8 },
    Model { name: "qwen3-30b", hidden: 2048, experts: 128, top_k: 8 },
    Model { name: "mixtral", hidden: 4096, experts: 8, top_k: 2 },
];

/// The batch sizes that are measured.
pub const TOKENS: [usize; 8] = [1, 8, 32, 128, 512, 1024, 4096, 16384];

macro_rules! names {
    ($(#[$meta:meta])* $Name:ident, $what:literal { $($(#[$doc:meta])* $Variant:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $Name { $($(#[$doc])* $Variant,)* }

        impl $Name {
            /// All of them, in the order of tables.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),*];

            /// The name on the command line, in tables and in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$Variant => $name),* }
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $Name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                let all = [$($name),*].join(", ");
                Self::ALL.iter().copied().find(|x| x.name() == s).ok_or(format!("no {} '{s}'; there are {all}", $what))
            }
        }
    };
}

names! {
    /// An operation that is measured.
    Op, "operation" {
        /// The plan from the expert ids: both maps, offsets, counts.
        Plan = "plan",
        /// Rows by expert, with a plan that is there.
        Gather = "gather",
        /// Plan and gather in one call.
        Permute = "permute",
        /// Rows brought home, weighted and summed.
        Combine = "combine",
        /// The gradients of combine, for the rows and for the weights.
        CombineGrad = "combine_grad",
    }
}

names! {
    /// The element type of the rows.
    Rows, "dtype" {
        /// bfloat16.
        Bf16 = "bf16",
        /// Half precision.
        F16 = "f16",
        /// Single precision.
        F32 = "f32",
        /// 8-bit floats with an f32 scale for each 128 elements, which travels with its row. Combined to bf16.
        F8 = "f8e4m3",
    }
}

impl Rows {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Rows::F32 => 4,
            Rows::Bf16 | Rows::F16 => 2,
            Rows::F8 => 1,
        }
    }

    /// Bytes of the scales of a row of `hidden` elements.
    pub const fn scale_bytes(self, hidden: usize) -> usize {
        match self {
            Rows::F8 => hidden.div_ceil(SCALE_BLOCK) * 4,
            _ => 0,
        }
    }

    /// Bytes of an element of what combine writes.
    pub const fn out_size(self) -> usize {
        match self {
            Rows::F8 => 2,
            _ => self.size(),
        }
    }
}

/// Elements of an 8-bit row that share a scale.
pub const SCALE_BLOCK: usize = 128;

names! {
    /// Where the expert ids come from.
    RoutingKind, "routing" {
        /// Uniform random, without repeats within a token.
        Uniform = "uniform",
        /// The choices of a real router, mapped to the model's experts.
        Recorded = "recorded",
        /// Every route goes to one expert.
        AllToOne = "all-to-one",
        /// Uniform, with an eighth of the experts local: 8-way expert parallelism.
        Ep8 = "ep8",
    }
}

/// One piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The layer.
    pub model: Model,
    /// T, tokens of the batch.
    pub tokens: usize,
    /// The element type of the rows.
    pub rows: Rows,
    /// Where the ids come from.
    pub routing: RoutingKind,
}

impl Case {
    /// N, routes of the batch.
    pub fn routes(&self) -> usize {
        self.tokens * self.model.top_k
    }

    /// Experts that are local.
    pub fn local_experts(&self) -> usize {
        match self.routing {
            RoutingKind::Ep8 => self.model.experts.div_ceil(8),
            _ => self.model.experts,
        }
    }

    /// The bytes that an operation reads and writes, given how many routes are local and how many tokens have one.
    /// A plan counts its ids (i32), both maps, offsets and counts.
    pub fn bytes(&self, op: Op, local_routes: usize, local_tokens: usize) -> usize {
        let hidden = self.model.hidden;
        let row = hidden * self.rows.size() + self.rows.scale_bytes(hidden);
        let (read_tokens, placed) = (local_tokens * row, local_routes * row);
        let plan = 4 * (3 * self.routes() + 2 * self.local_experts() + 1);
        match op {
            Op::Plan => plan,
            Op::Gather => read_tokens + placed,
            Op::Permute => plan + read_tokens + placed,
            Op::Combine => placed + self.tokens * hidden * self.rows.out_size(),
            Op::CombineGrad => read_tokens + 2 * placed,
        }
    }

    /// Whether an operation exists for these rows.
    pub fn has(&self, op: Op) -> bool {
        !(self.rows == Rows::F8 && op == Op::CombineGrad)
    }

    /// The same with rows of one element where only plans are made, so that no memory is spent on rows.
    pub fn without_idle_rows(self, ops: &[Op]) -> Self {
        let hidden = if ops.iter().all(|op| *op == Op::Plan) { 1 } else { self.model.hidden };
        Self { model: Model { hidden, ..self.model }, ..self }
    }

    /// Bytes of memory that measuring it takes on the device: rows, results and the two sides of the copy.
    pub fn memory(&self, ops: &[Op]) -> usize {
        let all = |op: &Op| self.bytes(*op, self.routes(), self.tokens);
        let row = self.model.hidden * self.rows.size() + self.rows.scale_bytes(self.model.hidden);
        let copies = ops.iter().map(all).max().unwrap_or(0);
        2 * (self.tokens + self.routes()) * row + copies
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} T={}", self.model.name, self.rows, self.routing, self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_permute_and_of_an_unpermute_are_those_of_its_copy() {
        let case = Case { model: MODELS[0], tokens: 4096, rows: Rows::Bf16, routing: RoutingKind::Uniform };
        let rows = 4096 * 9 * 7168 * 2;
        assert_eq!(case.bytes(Op::Gather, case.routes(), 4096), rows);
        assert_eq!(case.bytes(Op::Combine, case.routes(), 4096), rows);
    }

    #[test]
    fn a_plan_alone_takes_no_memory_for_rows() {
        let case = Case { model: MODELS[0], tokens: 131_072, rows: Rows::Bf16, routing: RoutingKind::Uniform };
        assert!(case.without_idle_rows(&[Op::Plan]).memory(&[Op::Plan]) < 1 << 28);
        assert_eq!(case.without_idle_rows(&[Op::Plan, Op::Gather]), case);
    }

    #[test]
    fn a_name_that_does_not_exist_is_refused_with_the_names_that_do() {
        assert_eq!("combine_grad".parse::<Op>(), Ok(Op::CombineGrad));
        assert!("unpermute".parse::<Op>().unwrap_err().contains("combine_grad"));
    }
}
