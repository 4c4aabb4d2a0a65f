//! Runs the cases on every device.

use crate::args::Args;
use crate::cases::{Case, Op, RoutingKind};
use crate::extras;
use crate::machine;
use crate::progress::Progress;
use crate::record::{self, What};
use crate::report::{Report, Run};
use crate::routing::{Ids, Recorded};
use crate::stats::{Effort, Job};
use crate::target::{Target, TargetVisitor, Task, with_target};
use crate::work::Work;
use crate::{Error, Result};
use moe_core::{Device, DeviceInfo};
use std::collections::BTreeMap;

/// The largest batch that is also measured with a cold cache.
const COLD_TOKENS: usize = 128;

/// Measures what the arguments ask for.
///
/// # Errors
/// If a device that was asked for by name cannot be opened, or an operation fails.
pub fn run(args: &Args) -> Result<Report> {
    let mut suite = Suite::new(args)?;
    for name in args.devices() {
        let result = name.parse().map_err(Error::from).and_then(|spec| with_target(&spec, &mut suite));
        suite.absent_or_failed(&name, result)?;
    }
    Ok(suite.report)
}

/// A run under way.
struct Suite<'a> {
    args: &'a Args,
    effort: Effort,
    recorded: Option<Recorded>,
    report: Report,
}

impl<'a> Suite<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        let recorded = match args.routings.contains(&RoutingKind::Recorded) {
            true => Some(Recorded::load(&args.data)?),
            false => None,
        };
        let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
        let report = Report { runs: vec![run_info(args)], ..Report::default() };
        Ok(Self { args, effort, recorded, report })
    }

    /// A device that nobody asked for by name may be absent: then that is written down.
    fn absent_or_failed(&mut self, name: &str, result: Result<()>) -> Result<()> {
        match result {
            Err(e) if self.args.backends.is_empty() && absent(&e) => {
                self.skip(format!("{name}: {e}"));
                Ok(())
            }
            other => other,
        }
    }

    fn skip(&mut self, line: String) {
        eprintln!("skipped: {line}");
        self.report.runs[0].skipped.push(line);
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for routing in &self.args.routings {
            for rows in &self.args.dtypes {
                for model in &self.args.models {
                    for tokens in &self.args.tokens {
                        cases.push(Case { model: *model, tokens: *tokens, rows: *rows, routing: *routing });
                    }
                }
            }
        }
        cases
    }

    fn case<T: Target>(&mut self, target: &mut T, case: Case, progress: &mut Progress) -> Result<()> {
        let ops: Vec<Op> = self.args.ops.iter().copied().filter(|op| case.has(*op)).collect();
        // The other families have rows of their own: as many as a gather and a combine together.
        let rows: &[Op] = if self.args.extras.is_empty() { &ops } else { &[Op::Gather, Op::Combine] };
        let case = case.without_idle_rows(rows);
        let (needs, has) = (case.memory(rows), target.memory_limit());
        if needs > has {
            let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
            let names = ops.iter().map(|op| op.name()).chain(self.args.extras.iter().copied());
            names.for_each(|op| progress.step(&format!("{case} {op}: skipped")));
            self.skip(format!("{case}: needs {:.1} GiB of memory, may take {:.1}", gib(needs), gib(has)));
            return Ok(());
        }
        let ids = Ids::new(&case, self.recorded.as_ref())?;
        let result = self.grid(target, case, &ids, &ops, progress);
        self.refused_or_failed(target, &case.to_string(), result)?;
        for op in self.args.extras.clone() {
            progress.step(&format!("{case} {op}"));
            let result = self.extra(target, case, &ids, op);
            self.refused_or_failed(target, &format!("{case} {op}"), result)?;
        }
        Ok(())
    }

    /// What a device refuses is written down.
    fn refused_or_failed<T: Target>(&mut self, target: &T, what: &str, result: Result<()>) -> Result<()> {
        match result {
            Err(e) if refused(&e) => {
                self.skip(format!("{what} on {}: {e}", target.device()));
                Ok(())
            }
            other => other,
        }
    }

    /// The operations that share the buffers of a case.
    fn grid<T: Target>(
        &mut self,
        target: &mut T,
        case: Case,
        ids: &Ids,
        ops: &[Op],
        progress: &mut Progress,
    ) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        let mut work = Work::new(target.queue(), case, ids)?;
        target.prepare_copies(ops.iter().map(|op| work.copy_len(*op)).max().unwrap_or(0))?;
        let peer = Peer::new(self.args, target, &case, ids)?;
        for op in ops.iter().copied() {
            progress.step(&format!("{case} {op}"));
            let what = what(&case, op.name(), case.rows.name(), work.bytes(op));
            self.measure(target, &what, &mut work.task(op), peer.ways(op))?;
        }
        Ok(())
    }

    /// An operation with buffers of its own.
    fn extra<T: Target>(&mut self, target: &mut T, case: Case, ids: &Ids, op: &'static str) -> Result<()> {
        let Some(mut entry) = extras::make(target.queue(), op, &case, ids)? else { return Ok(()) };
        let what = what(&case, op, entry.dtype, entry.bytes);
        let mut task = entry.task();
        target.prepare_copies(task.copy_len())?;
        self.measure(target, &what, &mut task, Vec::new())
    }

    fn measure<T: Target>(
        &mut self,
        target: &mut T,
        what: &What,
        task: &mut Task<'_, T::Backend>,
        peer: Vec<(&'static str, Job<'_>)>,
    ) -> Result<()> {
        let (ways, jobs): (Vec<_>, Vec<_>) = peer.into_iter().unzip();
        let measured = target.measure(task, jobs, self.effort)?;
        let ours = record::ours(target, what, &measured, "hot");
        let best = ways.into_iter().zip(&measured.peers).filter(|(_, s)| !s.is_empty()).collect();
        self.report.records.extend(record::peer(&ours, "candle", best));
        self.report.records.push(ours);
        if self.args.cold
            && what.tokens <= COLD_TOKENS
            && let Some(measured) = target.measure_cold(task, self.effort)?
        {
            self.report.records.push(record::ours(target, what, &measured, "cold"));
        }
        Ok(())
    }
}

impl TargetVisitor for Suite<'_> {
    fn visit<T: Target>(&mut self, mut target: T) -> Result<()> {
        let (id, name) = (target.device(), target.device_name());
        let facts = device_facts(target.raw().info());
        let run = &mut self.report.runs[0];
        run.devices.insert(id.clone(), facts);
        run.versions.insert(target.name().to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        eprintln!("{} on {id} ({name}): {}", target.name(), target.method());

        let cases = self.cases();
        let count = |case: &Case| self.args.ops.iter().filter(|op| case.has(**op)).count() + self.args.extras.len();
        let mut progress = Progress::new(cases.iter().map(count).sum());
        for case in cases {
            self.case(&mut target, case, &mut progress)?;
        }
        progress.finish();
        Ok(())
    }
}

fn what(case: &Case, op: &'static str, dtype: &'static str, bytes: usize) -> What {
    What { model: case.model.name, op, dtype, routing: case.routing.name(), tokens: case.tokens, bytes }
}

/// Whether there is no such device here.
pub(crate) fn absent(error: &Error) -> bool {
    use moe_core::Error::{BackendUnavailable, NoSuchDevice};
    matches!(error.downcast_ref(), Some(BackendUnavailable { .. } | NoSuchDevice { .. }))
}

/// Whether a device said that a case is too large for it, or not for it.
fn refused(error: &Error) -> bool {
    matches!(error.downcast_ref(), Some(moe_core::Error::OutOfMemory { .. } | moe_core::Error::Unsupported { .. }))
}

fn device_facts(info: DeviceInfo) -> BTreeMap<String, String> {
    let mut facts: BTreeMap<String, String> =
        info.details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    facts.insert("name".into(), info.name);
    if let Some(bytes) = info.memory_bytes {
        facts.insert("memory_bytes".into(), bytes.to_string());
    }
    facts
}

fn run_info(args: &Args) -> Run {
    #[allow(unused_mut)]
    let mut versions = BTreeMap::new();
    #[cfg(feature = "candle")]
    if args.peers {
        versions.insert("candle".to_owned(), crate::candle::VERSION.to_owned());
    }
    Run {
        program: "moe-bench".into(),
        args: std::env::args().skip(1).collect(),
        date: machine::now(),
        commit: args.commit.clone().or_else(machine::commit),
        machine: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: machine::cpu_name(),
        cores: machine::cores(),
        versions,
        devices: BTreeMap::new(),
        skipped: Vec::new(),
    }
}

/// The peer that runs in this process, where it can do the case.
struct Peer {
    #[cfg(feature = "candle")]
    candle: Option<crate::candle::Candle>,
}

impl Peer {
    #[cfg(feature = "candle")]
    fn new<T: Target>(args: &Args, target: &T, case: &Case, ids: &Ids) -> Result<Self> {
        use crate::candle::Candle;
        let can = args.peers && target.device().starts_with("cpu") && Candle::can(case, ids);
        let fits = Candle::memory(case) < machine::available_memory().unwrap_or(4 << 30) / 4 * 3;
        let candle = if can && fits { Some(Candle::new(case, ids)?) } else { None };
        Ok(Self { candle })
    }

    #[cfg(feature = "candle")]
    fn ways(&self, op: Op) -> Vec<(&'static str, Job<'_>)> {
        self.candle.as_ref().map_or(vec![], |candle| candle.ways(op))
    }

    #[cfg(not(feature = "candle"))]
    fn new<T: Target>(_: &Args, _: &T, _: &Case, _: &Ids) -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(feature = "candle"))]
    fn ways(&self, _: Op) -> Vec<(&'static str, Job<'_>)> {
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Kind;

    fn args(line: &str) -> Args {
        Args::parse(line.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_run_measures_every_operation_beside_its_copies_and_the_peer() {
        let report = run(&args("--quick --models mixtral --tokens 2 --backend cpu --dtype bf16")).unwrap();
        let ours: Vec<_> = report.records.iter().filter(|r| r.kind == Kind::Ours).collect();
        assert_eq!(
            ours.iter().map(|r| r.op.as_str()).collect::<Vec<_>>(),
            Op::ALL.iter().map(|o| o.name()).chain(extras::ops()).collect::<Vec<_>>()
        );
        assert!(ours.iter().all(|r| r.us > 0.0 && r.copies.len() == 3 && r.samples >= 3), "{ours:#?}");
        let with_peer = ours.iter().filter(|r| report.best_peer(r).is_some()).count();
        assert_eq!(with_peer, if cfg!(feature = "candle") { 4 } else { 0 }, "candle has no combine_grad");
    }

    #[test]
    fn a_backend_asked_for_by_name_that_is_not_there_is_an_error() {
        let error = run(&args("--quick --backend tpu")).unwrap_err().to_string();
        assert!(error.contains("tpu") && error.contains("cpu"), "{error}");
    }
}
