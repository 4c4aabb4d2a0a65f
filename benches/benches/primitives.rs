//! criterion benchmarks of the primitives on the CPU backend: `cargo bench -p moe-benches`.

use criterion::{BenchmarkId, Criterion, Throughput};
use moe_benches::cases::{Case, MODELS, Op, RoutingKind, Rows};
use moe_benches::cpu::CpuTarget;
use moe_benches::routing::Ids;
use moe_benches::target::Target;
use moe_benches::work::Work;
use std::time::Duration;

/// Batch sizes of decoding and of prefill.
const TOKENS: [usize; 3] = [8, 128, 1024];

fn primitives(criterion: &mut Criterion) {
    let mut cpu = CpuTarget::open(&"cpu".parse().expect("a name")).expect("the CPU is always there");
    for model in MODELS {
        for op in Op::ALL {
            let mut group = criterion.benchmark_group(format!("{}/{op}", model.name));
            group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
            for tokens in TOKENS {
                let case = Case { model, tokens, rows: Rows::Bf16, routing: RoutingKind::Uniform };
                let ids = Ids::new(&case, None).expect("uniform ids need no file");
                let mut work = Work::new(cpu.queue(), case, &ids).expect("the case fits");
                group.throughput(Throughput::Bytes(work.bytes(*op) as u64));
                group.bench_function(BenchmarkId::from_parameter(tokens), |bencher| {
                    bencher.iter(|| work.run(*op, cpu.queue()).expect("the arguments are right"));
                });
            }
            group.finish();
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    primitives(&mut criterion);
    criterion.final_summary();
}
