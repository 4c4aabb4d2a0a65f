//! The measurements as text: one table for each model, operation, dtype, routing and device.

use crate::report::{Kind, Record, Report};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Microseconds with three significant digits, and a unit that keeps them short.
pub fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1e3 => (us, "µs"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let digits = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}

fn times(x: f64) -> String {
    if x < 10.0 { format!("{x:.2}×") } else { format!("{x:.1}×") }
}

/// All tables.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let mut seen: Vec<&Record> = Vec::new();
    for record in &report.records {
        if seen.iter().any(|r| r.same_group(record)) {
            continue;
        }
        seen.push(record);
        let group: Vec<_> = report.records.iter().filter(|r| r.same_group(record)).collect();
        table(&mut out, report, &group);
    }
    out
}

fn table(out: &mut String, report: &Report, group: &[&Record]) {
    let names = |kind: Kind| -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for r in group.iter().filter(|r| r.kind == kind) {
            if !names.contains(&r.contender.as_str()) {
                names.push(&r.contender);
            }
        }
        names
    };
    let (ours, peers) = (names(Kind::Ours), names(Kind::Peer));
    let copies: BTreeSet<&str> = group.iter().flat_map(|r| r.copies.keys().map(String::as_str)).collect();
    let first = group[0];
    let cold = if first.cache == "hot" { "" } else { " · cold cache" };
    let (model, op, dtype, routing) = (&first.model, &first.op, &first.dtype, &first.routing);
    let _ = writeln!(out, "\n{model} · {op} · {dtype} · {routing}{cold}   [{}: {}]", first.class(), first.device_name);

    let mut header = vec!["T".to_owned()];
    // Of a backend with two clocks the table says which, and how much the host adds to a call.
    let clock = |name: &str| group.iter().find(|r| r.contender == name).and_then(|r| r.clock.clone());
    let has_overhead = |name: &str| group.iter().any(|r| r.contender == name && r.wall_us.is_some());
    for name in &ours {
        header.push(clock(name).map_or((*name).to_owned(), |clock| format!("{name} ({clock})")));
        header.push("ratio".to_owned());
        if has_overhead(name) {
            header.push("host adds".to_owned());
        }
    }
    header.extend(copies.iter().map(|c| format!("copy:{c}")));
    header.extend(peers.iter().map(|p| (*p).to_owned()));
    if !peers.is_empty() && !ours.is_empty() {
        header.push("over best peer".to_owned());
    }
    let tokens: BTreeSet<usize> = group.iter().map(|r| r.tokens).collect();
    let mut lines = vec![header];
    for t in tokens {
        // Of several runs the last one counts.
        let find = |name: &str| group.iter().rev().find(|r| r.tokens == t && r.contender == name);
        let cell = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        let mut line = vec![t.to_string()];
        for name in &ours {
            line.push(cell(find(name).map(|r| time(r.us))));
            line.push(cell(find(name).and_then(|r| r.ratio()).map(times)));
            if has_overhead(name) {
                line.push(cell(find(name).and_then(|r| r.overhead()).map(time)));
            }
        }
        let own = ours.iter().chain(&peers).find_map(|name| find(name));
        line.extend(copies.iter().map(|c| cell(own.and_then(|r| r.copies.get(*c)).map(|us| time(*us)))));
        line.extend(peers.iter().map(|p| cell(find(p).map(|r| time(r.us)))));
        if !peers.is_empty() && !ours.is_empty() {
            let best = ours.iter().filter_map(|name| find(name)).min_by(|a, b| a.us.total_cmp(&b.us));
            line.push(cell(best.and_then(|r| report.best_peer(r)).map(|(_, x)| times(x))));
        }
        lines.push(line);
    }
    align(out, &lines);
}

/// Right-aligned columns.
fn align(out: &mut String, lines: &[Vec<String>]) {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        let _ = writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn times_keep_three_digits() {
        let shown = [0.5, 9.876, 98.76, 987.6, 9876.0, 12_345_678.0].map(time);
        assert_eq!(shown, ["0.50 µs", "9.88 µs", "98.8 µs", "988 µs", "9.88 ms", "12.3 s"]);
    }

    #[test]
    fn a_table_shows_ratio_and_speed_up_and_a_dash_where_a_peer_did_not_run() {
        let text = render(&report());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "dsv3 · gather · bf16 · uniform   [cpu: a processor]");
        let cells = |line: &str| {
            line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            cells(lines[2]),
            ["T", "moe-cpu", "ratio", "copy:memcpy", "copy:streaming", "candle", "torch", "over best peer"]
        );
        assert_eq!(cells(lines[3]), ["32", "11.0 µs", "1.10×", "12.0 µs", "10.0 µs", "220 µs", "33.0 µs", "3.00×"]);
        assert_eq!(cells(lines[4])[5..], ["–", "–", "–"]);
    }

    #[test]
    fn a_table_says_by_which_clock_and_what_the_host_adds() {
        let mut report = report();
        report.records.truncate(1);
        (report.records[0].clock, report.records[0].wall_us) = (Some("gpu".into()), Some(31.0));
        let text = render(&report);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[2].contains("moe-cpu (gpu)") && lines[2].contains("host adds"), "{text}");
        assert!(lines[3].contains("11.0 µs") && lines[3].contains("20.0 µs"), "{text}");
    }
}
