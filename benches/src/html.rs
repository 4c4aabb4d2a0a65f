//! The measurements as one page that needs no network: the data, the styles and the code that draws are inside.

use crate::Result;
use crate::report::Report;

const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/page.css");
const SCRIPTS: [&str; 3] = [include_str!("html/chart.js"), include_str!("html/table.js"), include_str!("html/page.js")];

/// The page.
///
/// # Errors
/// None that is known; serde's.
pub fn render(report: &Report) -> Result<String> {
    // Inside a script element only "<" can end or open anything.
    let data = serde_json::to_string(report)?.replace('<', "\\u003c");
    let page = PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", &SCRIPTS.join("\n"));
    Ok(page.replace("/*DATA*/", &data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        let page = render(&report()).unwrap();
        for word in ["src=", "href=", "@import", "url(", "http://", "https://", "fetch(", "import(", "XMLHttpRequest"] {
            let without_namespace = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!without_namespace.contains(word), "the page has {word}");
        }
        assert!(!page.contains("/*DATA*/") && !page.contains("/*STYLE*/") && !page.contains("/*SCRIPT*/"));
    }

    #[test]
    fn a_name_with_markup_cannot_leave_the_data_and_comes_back() {
        let mut report = report();
        report.records[0].device_name = "</script><b>".into();
        let page = render(&report).unwrap();
        assert_eq!(page.matches("</script>").count(), page.matches("<script").count());
        let data = page.split("type=\"application/json\">").nth(1).unwrap().split("</script>").next().unwrap();
        assert_eq!(Report::from_json(data).unwrap(), report);
    }
}
