//! The picture of a simulation.

use std::fmt::Write;

use super::sim::{SimReport, SimRow};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 44.0;

/// What a line shows of a step.
type Value = fn(&SimRow) -> f64;

/// Balancedness over the steps: three lines, and a tick on the axis where a rebalance took place.
pub(super) fn draw(report: &SimReport, title: &str) -> String {
    let last = report.rows.len().saturating_sub(1).max(1) as f64;
    let x = |step: usize| LEFT + step as f64 / last * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| HEIGHT - BOTTOM - v * (HEIGHT - TOP - BOTTOM);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut put = |text: std::fmt::Arguments<'_>| {
        let _ = out.write_fmt(text);
        out.push('\n');
    };
    put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    put(format_args!(r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"##));
    put(format_args!(r#"<text x="{LEFT}" y="20" font-size="15">{}</text>"#, escape(title)));
    for tenth in (0..=10).step_by(2) {
        let v = f64::from(tenth) / 10.0;
        put(format_args!(
            r##"<line x1="{LEFT}" x2="{:.1}" y1="{1:.1}" y2="{1:.1}" stroke="#dddddd"/>"##,
            WIDTH - RIGHT,
            y(v)
        ));
        put(format_args!(r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{v:.1}</text>"#, LEFT - 6.0, y(v) + 4.0));
    }
    for row in report.rows.iter().filter(|r| r.rebalance.is_some()) {
        put(format_args!(
            r##"<line x1="{0:.1}" x2="{0:.1}" y1="{1:.1}" y2="{2:.1}" stroke="#555555"><title>step {3}: {4} copies</title></line>"##,
            x(row.step),
            y(0.0),
            y(0.0) + 6.0,
            row.step,
            row.moves
        ));
    }
    let lines: [(&str, &str, Value); 3] = [
        ("identity", "#b04a3a", |r| r.before),
        ("balanced", "#1f6fb4", |r| r.after),
        ("balanced, copies shared evenly", "#8fb8d8", |r| r.even),
    ];
    for (i, (name, colour, value)) in lines.into_iter().enumerate() {
        let mut points = String::new();
        for row in &report.rows {
            let _ = write!(points, "{:.1},{:.1} ", x(row.step), y(value(row)));
        }
        put(format_args!(
            r#"<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{}"/>"#,
            points.trim_end()
        ));
        put(format_args!(r#"<text x="{:.1}" y="40" fill="{colour}">{name}</text>"#, LEFT + 100.0 * i as f64));
    }
    put(format_args!(
        r#"<text x="{LEFT}" y="{:.1}">step (ticks: rebalances); y: mean / max rows per GPU</text>"#,
        HEIGHT - 12.0
    ));
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
