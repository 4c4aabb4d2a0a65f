//! Repeats in WGSL text, so that what a compiler must not be trusted to unroll is unrolled.

/// Expands `//@ for X in 0..COUNT` … `//@ end`: the lines between appear COUNT times, a number or a constant, with the
/// number of the turn in place of `X`, as `2u` in place of `Xu`, and in names between or after underscores (`row_X`,
/// `unit_X_Y`). Repeats nest.
pub(crate) fn expand(text: &str, constant: &dyn Fn(&str) -> Option<u32>) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::with_capacity(text.len() * 2);
    block(&mut lines.as_slice(), constant, &mut out);
    out
}

/// Expands up to the end of the block that `lines` is in, and leaves the lines behind it.
fn block(lines: &mut &[&str], constant: &dyn Fn(&str) -> Option<u32>, out: &mut String) {
    while let Some((line, rest)) = lines.split_first() {
        *lines = rest;
        let words: Vec<&str> = line.trim().strip_prefix("//@").unwrap_or("").split_whitespace().collect();
        match words.as_slice() {
            ["end"] => return,
            ["for", variable, "in", range] => {
                let mut body = String::new();
                block(lines, constant, &mut body);
                let count = range.strip_prefix("0..").unwrap_or("");
                // A count that is not there leaves text that no compiler takes; the tests compile every kernel.
                let count = count.parse().ok().or_else(|| constant(count)).unwrap_or(0);
                (0..count).for_each(|turn| substitute(&body, variable, &turn.to_string(), out));
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

fn substitute(text: &str, variable: &str, turn: &str, out: &mut String) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = text;
    while !rest.is_empty() {
        let name = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(name);
        match word.strip_suffix('u').filter(|number| *number == variable) {
            Some(_) => out.extend([turn, "u"]),
            None => {
                let parts = word.split('_').map(|part| if part == variable { turn } else { part });
                out.push_str(&parts.collect::<Vec<_>>().join("_"));
            }
        }
        let other = tail.find(is_name).unwrap_or(tail.len());
        out.push_str(&tail[..other]);
        rest = &tail[other..];
    }
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn repeats_nest_and_replace_whole_names_only() {
        let text =
            "a\n//@ for K in 0..N\nlet x_K = Ku; Kind(K);\n  //@ for U in 0..2\nu_K_U = U;\n  //@ end\n//@ end\nb\n";
        let expanded = expand(text, &|name| (name == "N").then_some(2));
        let expected =
            "a\nlet x_0 = 0u; Kind(0);\nu_0_0 = 0;\nu_0_1 = 1;\nlet x_1 = 1u; Kind(1);\nu_1_0 = 0;\nu_1_1 = 1;\nb\n";
        assert_eq!(expanded, expected);
    }
}
