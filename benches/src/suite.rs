//! Runs the cases on every device.

use crate::args::Args;
use crate::cases::{Case, Op, RoutingKind};
use crate::cpu::CpuTarget;
use crate::machine;
use crate::progress::Progress;
use crate::report::{Kind, Record, Report, Run};
use crate::routing::{Ids, Recorded};
use crate::stats::{Effort, Job, Samples};
use crate::target::{Clock, Copies, Measured, Target};
use crate::work::Work;
use crate::{Error, Result};
use moe_core::{Backend, Dev, DeviceSpec};
use std::collections::BTreeMap;

/// The largest batch that is also measured with a cold cache.
const COLD_TOKENS: usize = 128;

/// Measures what the arguments ask for.
///
/// # Errors
/// If a device that was asked for by name cannot be opened, or an operation fails.
pub fn run(args: &Args) -> Result<Report> {
    let mut suite = Suite::new(args)?;
    for name in suite.wanted() {
        let spec: DeviceSpec = name.parse()?;
        let result = match spec.backend() {
            "cpu" => CpuTarget::open(&spec).and_then(|target| suite.measure(target)),
            #[cfg(feature = "cuda")]
            "cuda" => crate::cuda::CudaTarget::open(&spec).and_then(|target| suite.measure(target)),
            #[cfg(feature = "wgpu")]
            "wgpu" => crate::wgpu::WgpuTarget::open(&spec).and_then(|target| suite.measure(target)),
            other => Err(format!("no backend '{other}' in this build; there are {}", compiled().join(", ")).into()),
        };
        suite.absent_or_failed(&name, result)?;
    }
    Ok(suite.report)
}

/// The backends that are compiled in.
pub fn compiled() -> Vec<&'static str> {
    let mut names = vec!["cpu"];
    if cfg!(feature = "cuda") {
        names.push("cuda");
    }
    if cfg!(feature = "wgpu") {
        names.push("wgpu");
    }
    names
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

    fn wanted(&self) -> Vec<String> {
        match self.args.backends.is_empty() {
            true => compiled().into_iter().map(str::to_owned).collect(),
            false => self.args.backends.clone(),
        }
    }

    /// A device that nobody asked for by name may be absent: then that is written down.
    fn absent_or_failed(&mut self, name: &str, result: Result<()>) -> Result<()> {
        let absent = |e: &Error| {
            use moe_core::Error::{BackendUnavailable, NoSuchDevice};
            matches!(e.downcast_ref(), Some(BackendUnavailable { .. } | NoSuchDevice { .. }))
        };
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

    fn measure<T: Target>(&mut self, mut target: T) -> Result<()> {
        let (id, name) = (target.device(), target.device_name());
        let facts: BTreeMap<String, String> = device_facts::<T::Backend>(&id)?;
        let run = &mut self.report.runs[0];
        run.devices.insert(id.clone(), facts);
        run.versions.insert(target.name().to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        eprintln!("{} on {id} ({name}): {}", target.name(), target.method());

        let cases = self.cases();
        let count = |case: &Case| self.args.ops.iter().filter(|op| case.has(**op)).count();
        let mut progress = Progress::new(cases.iter().map(count).sum());
        for case in cases {
            self.case(&mut target, case, &mut progress)?;
        }
        progress.finish();
        Ok(())
    }

    fn case<T: Target>(&mut self, target: &mut T, case: Case, progress: &mut Progress) -> Result<()> {
        let ops: Vec<Op> = self.args.ops.iter().copied().filter(|op| case.has(*op)).collect();
        let case = case.without_idle_rows(&ops);
        let (needs, has) = (case.memory(&ops), target.memory_limit());
        if needs > has {
            let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
            ops.iter().for_each(|op| progress.step(&format!("{case} {op}: skipped")));
            self.skip(format!("{case}: needs {:.1} GiB of memory, may take {:.1}", gib(needs), gib(has)));
            return Ok(());
        }
        match self.measure_case(target, case, &ops, progress) {
            Err(e) if refused(&e) => {
                self.skip(format!("{case} on {}: {e}", target.device()));
                Ok(())
            }
            other => other,
        }
    }

    fn measure_case<T: Target>(
        &mut self,
        target: &mut T,
        case: Case,
        ops: &[Op],
        progress: &mut Progress,
    ) -> Result<()> {
        let ids = Ids::new(&case, self.recorded.as_ref())?;
        let mut work = Work::new(target.queue(), case, &ids)?;
        target.prepare_copies(ops.iter().map(|op| work.copy_len(*op)).max().unwrap_or(0))?;
        let peer = Peer::new(self.args, target, &case, &ids)?;
        for op in ops.iter().copied() {
            progress.step(&format!("{case} {op}"));
            let (ways, jobs): (Vec<_>, Vec<_>) = peer.ways(op).into_iter().unzip();
            let measured = target.measure(&mut work, op, jobs, self.effort)?;
            let ours = record(target, &work, op, &measured, "hot");
            let best = ways.into_iter().zip(&measured.peers).filter(|(_, s)| !s.is_empty()).collect();
            self.report.records.extend(peer_record(&ours, best));
            self.report.records.push(ours);
            if self.args.cold
                && case.tokens <= COLD_TOKENS
                && let Some(measured) = target.measure_cold(&mut work, op, self.effort)?
            {
                self.report.records.push(record(target, &work, op, &measured, "cold"));
            }
        }
        Ok(())
    }
}

/// Whether a device said that a case is too large for it, or not for it.
fn refused(error: &Error) -> bool {
    matches!(error.downcast_ref(), Some(moe_core::Error::OutOfMemory { .. } | moe_core::Error::Unsupported { .. }))
}

fn record<T: Target>(target: &T, work: &Work<T::Backend>, op: Op, measured: &Measured, cache: &str) -> Record {
    let case = work.case();
    Record {
        run: 0,
        contender: target.name().into(),
        kind: Kind::Ours,
        device: target.device(),
        device_name: target.device_name(),
        model: case.model.name.into(),
        op: op.name().into(),
        dtype: case.rows.name().into(),
        routing: case.routing.name().into(),
        tokens: case.tokens,
        cache: cache.into(),
        us: measured.ours.median(),
        us_min: measured.ours.min(),
        clock: measured.clock.as_ref().map(|clock| match clock {
            Clock::Gpu { .. } => "gpu".into(),
            Clock::Wall => "wall".into(),
        }),
        wall_us: match &measured.clock {
            Some(Clock::Gpu { wall }) => Some(wall.median()),
            _ => None,
        },
        samples: measured.ours.len(),
        bytes: work.bytes(op),
        copies: medians(&measured.copies),
        way: None,
        other_ways: BTreeMap::new(),
    }
}

fn medians(copies: &Copies) -> BTreeMap<String, f64> {
    copies.iter().map(|(name, samples)| ((*name).to_owned(), samples.median())).collect()
}

/// The record of a peer in its fastest way.
fn peer_record(ours: &Record, mut ways: Vec<(&'static str, &Samples)>) -> Option<Record> {
    ways.sort_by(|a, b| a.1.median().total_cmp(&b.1.median()));
    let (way, samples) = *ways.first()?;
    Some(Record {
        contender: "candle".into(),
        kind: Kind::Peer,
        clock: None,
        wall_us: None,
        us: samples.median(),
        us_min: samples.min(),
        samples: samples.len(),
        way: Some(way.to_owned()),
        other_ways: ways[1..].iter().map(|(way, s)| ((*way).to_owned(), s.median())).collect(),
        ..ours.clone()
    })
}

fn device_facts<B: Backend>(id: &str) -> Result<BTreeMap<String, String>> {
    let info = Dev::<B>::open(&id.parse()?)?.info();
    let mut facts: BTreeMap<String, String> =
        info.details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    facts.insert("name".into(), info.name);
    if let Some(bytes) = info.memory_bytes {
        facts.insert("memory_bytes".into(), bytes.to_string());
    }
    Ok(facts)
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

    fn args(line: &str) -> Args {
        Args::parse(line.split_whitespace().map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_run_measures_every_operation_beside_its_copies_and_the_peer() {
        let report = run(&args("--quick --models mixtral --tokens 2 --backend cpu --dtype f32")).unwrap();
        let ours: Vec<_> = report.records.iter().filter(|r| r.kind == Kind::Ours).collect();
        assert_eq!(
            ours.iter().map(|r| r.op.as_str()).collect::<Vec<_>>(),
            Op::ALL.iter().map(|o| o.name()).collect::<Vec<_>>()
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

    #[test]
    fn of_a_peers_ways_the_fastest_counts() {
        let ours = crate::report::tests::record("moe-cpu", Kind::Ours, 1, 1.0);
        let (slow, fast) = (Samples(vec![9.0, 9.0, 9.0]), Samples(vec![4.0, 5.0, 40.0]));
        let peer = peer_record(&ours, vec![("slow", &slow), ("fast", &fast)]).unwrap();
        assert_eq!((peer.us, peer.way.as_deref(), peer.other_ways["slow"]), (5.0, Some("fast"), 9.0));
        assert!(peer_record(&ours, vec![]).is_none());
    }
}
