//! A report as tables for a README: what a reader asks first, and the rest.

use crate::cases::Op;
use crate::report::{Kind, Record, Report};
use crate::table::time;
use std::fmt::Write;

/// Rows, routing and cache of a table.
#[derive(Clone, Copy, Debug)]
struct Of(&'static str, &'static str, &'static str);

impl Of {
    fn ours(self, r: &Record) -> bool {
        r.kind == Kind::Ours && (&*r.dtype, &*r.routing, &*r.cache) == (self.0, self.1, self.2)
    }
}

/// What a reader asks first: bf16, uniform routing, hot caches.
pub fn markdown(report: &Report) -> String {
    pairs(report, Of("bf16", "uniform", "hot"), ["permute", "combine"])
}

/// Everything else, each table under its title.
pub fn more(report: &Report) -> String {
    let mut text = String::new();
    let mut add = |title: &str, table: String| {
        if table.lines().count() > 2 {
            let _ = write!(text, "\n### {title}\n\n{table}");
        }
    };
    let both = ["permute", "combine"];
    let grad = ["gather", "combine_grad"];
    add("Cold cache: overwritten before each call", pairs(report, Of("bf16", "uniform", "cold"), both));
    add("8-bit rows with a scale for each 128 elements", pairs(report, Of("f8e4m3", "uniform", "hot"), both));
    add("8-bit rows, cold cache", pairs(report, Of("f8e4m3", "uniform", "cold"), both));
    add("8-way expert parallelism", pairs(report, Of("bf16", "ep8", "hot"), both));
    add("8-way expert parallelism, 8-bit rows", pairs(report, Of("f8e4m3", "ep8", "hot"), both));
    add("Gather with a plan that is there, and the gradients", pairs(report, Of("bf16", "uniform", "hot"), grad));
    add("Plans alone", others(report, |op| op == "plan"));
    add("Other operations", others(report, |op| op.parse::<Op>().is_err()));
    text.trim_start().to_owned()
}

/// Time, ratio to the copy, and fastest peer.
fn cells(report: &Report, record: Option<&Record>) -> String {
    let Some(record) = record else { return " | | ".into() };
    let ratio = record.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
    let peer = report.best_peer(record);
    let peer = peer.map_or(String::new(), |(peer, times)| format!("{}: {times:.1}×", peer.contender));
    format!("{} | {ratio} | {peer}", time(record.us))
}

/// Of several runs of the same work, the last.
fn is_last(report: &Report, record: &Record) -> bool {
    let same = |r: &&Record| r.kind == Kind::Ours && r.contender == record.contender && r.same_work(record);
    report.records.iter().rfind(same).is_some_and(|last| std::ptr::eq(last, record))
}

/// For each backend, model and T two operations side by side.
fn pairs(report: &Report, of: Of, ops: [&str; 2]) -> String {
    let mut text = format!(
        "| backend | model | T | {} | / copy | fastest peer | {} | / copy | fastest peer |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        ops[0], ops[1]
    );
    let shown = |r: &&Record| of.ours(r) && is_last(report, r);
    for first in report.records.iter().filter(shown).filter(|r| r.op == ops[0]) {
        let same = |r: &&Record| {
            r.op == ops[1]
                && r.contender == first.contender
                && r.device_name == first.device_name
                && r.model == first.model
                && r.tokens == first.tokens
        };
        let second = report.records.iter().filter(shown).find(same);
        let Record { contender, model, tokens, .. } = first;
        let (a, b) = (cells(report, Some(first)), cells(report, second));
        let _ = writeln!(text, "| {contender} | {model} | {tokens} | {a} | {b} |");
    }
    text
}

/// Operations one below the other, at a few batch sizes.
fn others(report: &Report, wanted: impl Fn(&str) -> bool) -> String {
    let mut text = String::from(
        "| backend | operation | model | T | time | / copy | fastest peer |\n|---|---|---|---|---|---|---|\n",
    );
    let ours = |r: &&Record| r.kind == Kind::Ours && r.cache == "hot" && r.routing == "uniform" && wanted(&r.op);
    let mut records: Vec<&Record> = report.records.iter().filter(ours).filter(|r| is_last(report, r)).collect();
    records.retain(|r| [1, 128, 1024, 16384].contains(&r.tokens));
    let mut order: Vec<&str> = Vec::new();
    for r in &records {
        if !order.contains(&&*r.op) {
            order.push(&r.op);
        }
    }
    records.sort_by_key(|r| (r.contender.clone(), order.iter().position(|op| *op == r.op)));
    for r in records {
        let Record { contender, op, model, tokens, .. } = r;
        let _ = writeln!(text, "| {contender} | {op} | {model} | {tokens} | {} |", cells(report, Some(r)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::record;

    fn of(contender: &str, kind: Kind, op: &str, us: f64) -> Record {
        Record { op: op.into(), ..record(contender, kind, 128, us) }
    }

    #[test]
    fn a_row_shows_both_operations_beside_the_fastest_peer() {
        let records = vec![
            of("moe-cuda", Kind::Ours, "permute", 2.0),
            of("moe-cuda", Kind::Ours, "combine", 1.0),
            of("vllm", Kind::Peer, "permute", 9.0),
            of("torch", Kind::Peer, "permute", 20.0),
        ];
        let report = Report { records, ..Report::default() };
        let text = markdown(&report);
        let row = text.lines().last().unwrap();
        assert!(row.contains("moe-cuda") && row.contains("vllm: 4.5×") && !row.contains("torch"), "{text}");
        assert_eq!(row.matches('|').count(), 10, "{text}");
        assert_eq!(more(&report), "", "nothing else was measured");
    }

    #[test]
    fn the_rest_has_a_table_for_each_kind_of_work_and_the_last_run_counts() {
        let with = |dtype: &str, routing: &str, cache: &str, us| {
            let record = of("moe-cuda", Kind::Ours, "permute", us);
            Record { dtype: dtype.into(), routing: routing.into(), cache: cache.into(), ..record }
        };
        let records = vec![
            with("bf16", "uniform", "cold", 2.0),
            with("bf16", "uniform", "cold", 3.0),
            with("f8e4m3", "uniform", "hot", 4.0),
            with("bf16", "ep8", "hot", 5.0),
            of("moe-cuda", Kind::Ours, "router", 6.0),
            of("vllm", Kind::Peer, "router", 9.0),
        ];
        let text = more(&Report { records, ..Report::default() });
        assert_eq!(text.matches("### ").count(), 4, "{text}");
        assert!(text.contains("3.00 µs") && !text.contains("2.00 µs"), "{text}");
        assert!(text.contains("| moe-cuda | router | dsv3 | 128 | 6.00 µs | 0.60 | vllm: 1.5× |"), "{text}");
    }
}
