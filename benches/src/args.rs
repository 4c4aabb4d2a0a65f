//! The command line.

use crate::Result;
use crate::cases::{MODELS, Model, Op, RoutingKind, Rows, TOKENS};
use std::path::PathBuf;

/// What `--help` prints.
pub const HELP: &str = "\
moe-bench: every backend and every peer does the same work, beside a copy of the same bytes

  --quick              a minute's run: three batch sizes, fewer repeats
  --figures            measure only the CPU figures that have a bar, and say of each whether it is met (exit status 1
                       if one is not)
  --models A,B         of dsv3, qwen3-30b, mixtral
  --tokens 1,8,...     batch sizes; default 1 to 16384, what memory allows
  --ops A,B            of plan, gather, permute, combine, combine_grad
  --dtype A,B          of bf16 (default), f16, f32, f8e4m3
  --routing A,B        of uniform (default), recorded, all-to-one, ep8; 'all' for the four
  --backend A,B        device specifications such as cpu, cuda:1, wgpu; default: every backend that has a device
  --no-peers           without candle
  --cold               also with the device's cache overwritten before each call, T <= 128 (CUDA)
  --data DIR           the folder with routing_ids.safetensors; default benches/data
  --out DIR            where bench.json and bench.html go; default target/bench
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
    /// Operations.
    pub ops: Vec<Op>,
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
            dtypes: vec![Rows::Bf16],
            routings: vec![RoutingKind::Uniform],
            backends: Vec::new(),
            peers: true,
            cold: false,
            data: "benches/data".into(),
            out: "target/bench".into(),
            merge: Vec::new(),
            run: true,
            commit: None,
            help: false,
        }
    }
}

impl Args {
    /// Reads the arguments after the program's name. `--name value` and `--name=value` are the same.
    ///
    /// # Errors
    /// If one is unknown, lacks its value or has a bad one.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut parsed = Self::default();
        let mut tokens_given = false;
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
                "--help" | "-h" => parsed.help = true,
                "--models" => parsed.models = list(&value()?, model)?,
                "--tokens" => {
                    parsed.tokens = list(&value()?, |t| match t.parse() {
                        Ok(t) if t > 0 => Ok(t),
                        _ => Err(format!("'{t}' is not a number of tokens")),
                    })?;
                    tokens_given = true;
                }
                "--ops" => parsed.ops = list(&value()?, str::parse)?,
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
        if parsed.quick && !tokens_given {
            parsed.tokens = vec![32, 512, 4096];
        }
        Ok(parsed)
    }
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
