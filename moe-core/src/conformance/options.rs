//! How much of the suite to run, and how strictly to compare.

/// How results that are computed are compared. Index arrays and copied bits are always compared exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// Bit for bit.
    Exact,
    /// `|error| <= 1 ulp of the output + n * 2^-23 * Σ|terms|` for a sum of n terms that may not fuse multiply and
    /// add; subnormals may be flushed to zero, and NaN may have any bits.
    Ulp,
}

/// What to run and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Covers every combination of three axes instead of every combination of two, with larger matrices.
    pub full: bool,
    /// All random choices follow from it.
    pub seed: u64,
    /// How computed results are compared.
    pub tolerance: Tolerance,
    /// Elements of the largest matrix of a generated case; `None` picks by `full`.
    pub max_elements: Option<usize>,
    /// Device memory that the groups for large offsets may take; they are skipped where it is too little.
    pub max_bytes: u64,
    /// Another device of the backend, for the checks that tell two apart.
    pub second_device: Option<String>,
    /// Groups not to run, each with the reason, which is printed.
    pub skips: Vec<(&'static str, &'static str)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            full: false,
            seed: 0x6d6f_6531,
            tolerance: Tolerance::Exact,
            max_elements: None,
            max_bytes: 0,
            second_device: None,
            skips: Vec::new(),
        }
    }
}

impl Options {
    /// The defaults, changed by the environment: `MOE_FULL=1`, `MOE_SEED=number`, `MOE_MAX_BYTES=number`.
    ///
    /// # Panics
    /// If a variable is set and cannot be read.
    pub fn from_env() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text:?} is not a decimal number")))
        };
        let default = Self::default();
        Self {
            full: number("MOE_FULL").is_some_and(|n| n != 0),
            seed: number("MOE_SEED").unwrap_or(default.seed),
            max_bytes: number("MOE_MAX_BYTES").unwrap_or(default.max_bytes),
            ..default
        }
    }

    /// [`from_env`](Self::from_env), changed by a program's arguments: `--full`, `--seed N`, `--max-bytes N`.
    ///
    /// # Errors
    /// A sentence that names the argument.
    pub fn from_args(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::from_env();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut number = || {
                let text = args.next().unwrap_or_default();
                text.parse::<u64>().map_err(|_| format!("{arg}: expected a decimal number, got {text:?}"))
            };
            match arg.as_str() {
                "--full" => options.full = true,
                "--seed" => options.seed = number()?,
                "--max-bytes" => options.max_bytes = number()?,
                _ => return Err(format!("{arg}: expected --full, --seed N or --max-bytes N")),
            }
        }
        Ok(options)
    }

    pub(super) fn element_limit(&self) -> usize {
        self.max_elements.unwrap_or(if self.full { 8 << 20 } else { 2 << 20 })
    }
}
