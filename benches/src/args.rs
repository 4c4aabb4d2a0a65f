//! The command line.

use crate::Result;
use crate::cases::{MODELS, Model, Op, RoutingKind, Rows, TOKENS};
use crate::extras;
use crate::target::compiled;
use std::path::PathBuf;

/// What `--help` prints.
pub const HELP: &str = "\
moe-bench: every backend and every peer does the same work, beside a copy of the same bytes

  --quick              a minute's run: three batch sizes, fewer repeats
  --figures            measure only the CPU figures that have a bar, and say of each whether it is met (exit status 1
                       if one is not)
  --models A,B         of dsv3, qwen3-30b, mixtral
  --tokens 1,8,...     batch sizes; default 1 to 16384, what memory allows
  --ops A,B            of plan, gather, permute, combine, combine_grad, and those that benches/README.md lists beside
                       them; default: all
  --dtype A,B          of bf16 (default), f16, f32, f8e4m3
  --routing A,B        of uniform (default), recorded, all-to-one, ep8; 'all' for the four
  --backend A,B        device specifications such as cpu, cuda:1, wgpu; default: every backend that has a device
  --no-peers           without candle
  --cold               also with the device's cache overwritten before each call, T <= 128 (CUDA)
  --data DIR           the folder with routing_ids.safetensors; default benches/data
  --out DIR            where bench.json and bench.html go; default target/bench
  --tune               measure the thresholds of the backends' kernels instead, on the operations, models and batch sizes
                       given (default: all operations, qwen3-30b, T = 1, 16, 128, 1024), and write the table that
                       the oracle reads; `cargo xtask doctor --table FILE` shows what it changes
  --table FILE         where; what is there of other devices stays; default OUT/tuning.txt
  --merge FILE         take over another run's JSON, such as that of benches/peers/peers.py; repeatable
  --no-run             measure nothing: show what --merge names
  --commit HASH        the commit to write down where there is no git
";

/// What to do.
#[derive(Clone, Debug)]
pub struct Args {
    /// Less of everything.
    pub quick: bool,
    /// The figures with a bar only.
    pub figures: bool,
    /// Layers.
    pub models: Vec<Model>,
    /// Batch sizes.
    pub tokens: Vec<usize>,
    /// Operations of the grid.
    pub ops: Vec<Op>,
    /// Operations of the other families.
    pub extras: Vec<&'static str>,
    /// Element types.
    pub dtypes: Vec<Rows>,
    /// Routings.
    pub routings: Vec<RoutingKind>,
    /// Devices that were asked for; empty: all.
    pub backends: Vec<String>,
    /// With the peers that are linked.
    pub peers: bool,
    /// Also with a cold cache.
    pub cold: bool,
    /// Where the recorded ids are.
    pub data: PathBuf,
    /// Where results go.
    pub out: PathBuf,
    /// Other runs.
    pub merge: Vec<PathBuf>,
    /// Measure the knobs.
    pub tune: bool,
    /// Where their table goes.
    pub table: Option<PathBuf>,
    /// Measure.
    pub run: bool,
    /// The commit, where git cannot tell.
    pub commit: Option<String>,
    /// `--help` was given.
    pub help: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            quick: false,
            figures: false,
            models: MODELS.to_vec(),
            tokens: TOKENS.to_vec(),
            ops: Op::ALL.to_vec(),
            extras: extras::ops(),
            dtypes: vec![Rows::Bf16],
            routings: vec![RoutingKind::Uniform],
            backends: Vec::new(),
            peers: true,
            cold: false,
            data: "benches/data".into(),
            out: "target/bench".into(),
            merge: Vec::new(),
            tune: false,
            table: None,
            run: true,
            commit: None,
            help: false,
        }
    }
}

impl Args {
    /// The devices that were asked for, or a device of each backend.
    pub fn devices(&self) -> Vec<String> {
        match self.backends.is_empty() {
            true => compiled().into_iter().map(str::to_owned).collect(),
            false => self.backends.clone(),
        }
    }

    /// Reads the arguments after the program's name. `--name value` and `--name=value` are the same.
    ///
    /// # Errors
    /// If one is unknown, lacks its value or has a bad one.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut parsed = Self::default();
        let (mut tokens_given, mut models_given) = (false, false);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let (name, mut inline) = match arg.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (arg, None),
            };
            let mut value = || inline.take().or_else(|| args.next()).ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--quick" => parsed.quick = true,
                "--figures" => parsed.figures = true,
                "--no-peers" => parsed.peers = false,
                "--cold" => parsed.cold = true,
                "--no-run" => parsed.run = false,
                "--tune" => parsed.tune = true,
                "--table" => parsed.table = Some(value()?.into()),
                "--help" | "-h" => parsed.help = true,
                "--models" => (parsed.models, models_given) = (list(&value()?, model)?, true),
                "--tokens" => {
                    parsed.tokens = list(&value()?, |t| match t.parse() {
                        Ok(t) if t > 0 => Ok(t),
                        _ => Err(format!("'{t}' is not a number of tokens")),
                    })?;
                    tokens_given = true;
                }
                "--ops" => (parsed.ops, parsed.extras) = ops(&value()?)?,
                "--dtype" => parsed.dtypes = list(&value()?, str::parse)?,
                "--routing" => {
                    let value = value()?;
                    parsed.routings =
                        if value == "all" { RoutingKind::ALL.to_vec() } else { list(&value, str::parse)? };
                }
                "--backend" => parsed.backends = list(&value()?, |b| Ok(b.to_owned()))?,
                "--data" => parsed.data = value()?.into(),
                "--out" => parsed.out = value()?.into(),
                "--merge" => parsed.merge.push(value()?.into()),
                "--commit" => parsed.commit = Some(value()?),
                _ => return Err(format!("unknown argument '{name}'; --help lists them").into()),
            }
            if inline.is_some() {
                return Err(format!("{name} takes no value").into());
            }
        }
        if parsed.tune && !models_given {
            parsed.models = vec![model("qwen3-30b")?];
        }
        match (parsed.tune, parsed.quick) {
            _ if tokens_given => {}
            (true, false) => parsed.tokens = vec![1, 16, 128, 1024],
            (true, true) => parsed.tokens = vec![16, 512],
            (false, true) => parsed.tokens = vec![32, 512, 4096],
            (false, false) => {}
        }
        Ok(parsed)
    }
}

/// Names of operations, sorted into those of the grid and the others.
fn ops(value: &str) -> Result<(Vec<Op>, Vec<&'static str>)> {
    let (mut grid, mut others) = (Vec::new(), Vec::new());
    for name in value.split(',').map(str::trim) {
        match (name.parse::<Op>(), extras::ops().into_iter().find(|op| *op == name)) {
            (Ok(op), _) => grid.push(op),
            (_, Some(op)) => others.push(op),
            (Err(error), None) => return Err(format!("{error}, {}", extras::ops().join(", ")).into()),
        }
    }
    Ok((grid, others))
}

fn model(name: &str) -> std::result::Result<Model, String> {
    let all = || MODELS.map(|m| m.name).join(", ");
    MODELS.iter().copied().find(|m| m.name == name).ok_or_else(|| format!("no model '{name}'; there are {}", all()))
}

fn list<T>(value: &str, parse: impl Fn(&str) -> std::result::Result<T, String>) -> Result<Vec<T>> {
    Ok(value.split(',').map(|item| parse(item.trim())).collect::<std::result::Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn filters_are_lists_and_both_spellings_of_a_value_work() {
        let args =
            parse("--models=dsv3,mixtral --tokens 8,4096 --ops plan --dtype f32 --routing all --merge a --merge b");
        let args = args.unwrap();
        assert_eq!(args.models.iter().map(|m| m.name).collect::<Vec<_>>(), ["dsv3", "mixtral"]);
        assert_eq!((args.tokens, args.ops, args.dtypes), (vec![8, 4096], vec![Op::Plan], vec![Rows::F32]));
        assert_eq!((args.routings.len(), args.merge.len()), (4, 2));
    }

    #[test]
    fn quick_keeps_the_batch_sizes_that_were_asked_for() {
        assert_eq!(parse("--tokens 7 --quick").unwrap().tokens, [7]);
        assert_eq!(parse("--quick").unwrap().tokens.len(), 3);
    }

    #[test]
    fn mistakes_are_refused_by_name() {
        for (line, message) in [
            ("--modles dsv3", "--modles"),
            ("--models gpt", "gpt"),
            ("--tokens 0", "'0'"),
            ("--out", "--out needs"),
            ("--quick=yes", "--quick takes no value"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(message), "{line}: {error}");
        }
    }

    #[test]
    fn the_help_names_every_argument_that_is_read() {
        let source = include_str!("args.rs");
        let read = source.lines().filter_map(|l| l.trim().strip_prefix("\"--")?.split('"').next());
        for name in read {
            assert!(name == "help" || HELP.contains(&format!("--{name}")), "--{name} is not in the help");
        }
    }
}
