//! The counts of a run as a table: text for a terminal, Markdown for a page.

use std::fmt;

use crate::{
    report::Tally,
    suite::{Family, Kind},
};

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Columns of equal width.
    Text,
    /// GitHub's Markdown.
    Markdown,
}

/// Counts by family.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<(Kind, String, Tally)>,
}

impl Table {
    /// Adds what came of a family.
    pub fn add(&mut self, family: &Family, tally: Tally) {
        self.rows.push((family.kind, family.title.clone(), tally));
    }

    /// All of them together.
    pub fn total(&self) -> Tally {
        self.rows.iter().fold(Tally::default(), |sum, (_, _, tally)| Tally {
            passed: sum.passed + tally.passed,
            failed: sum.failed + tally.failed,
            skipped: sum.skipped + tally.skipped,
        })
    }

    /// The table in a style.
    pub fn styled(&self, style: Style) -> impl fmt::Display {
        let mut lines = Vec::new();
        for (kind, heading) in [(Kind::Operations, "operations"), (Kind::Client, "client")] {
            let rows: Vec<_> = self.rows.iter().filter(|row| row.0 == kind).collect();
            if rows.is_empty() {
                continue;
            }
            if !lines.is_empty() {
                lines.push(String::new());
            }
            lines.push(line(style, [heading, "passed", "failed", "skipped"]));
            if style == Style::Markdown {
                lines.push("| --- | ---: | ---: | ---: |".to_owned());
            }
            for (_, title, tally) in rows {
                let counts = [tally.passed, tally.failed, tally.skipped].map(|count| count.to_string());
                let [passed, failed, skipped] = &counts;
                lines.push(line(style, [title, passed, failed, skipped]));
            }
        }
        lines.join("\n")
    }
}

fn line(style: Style, [title, passed, failed, skipped]: [&str; 4]) -> String {
    match style {
        Style::Text => format!("{title:<32} {passed:>8} {failed:>8} {skipped:>8}"),
        Style::Markdown => format!("| {title} | {passed} | {failed} | {skipped} |"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_hold_the_same_counts() {
        let family = |kind, title: &str| Family {
            kind,
            title: title.to_owned(),
            module: "",
            cases: Vec::new(),
        };
        let tally = |passed, failed, skipped| Tally {
            passed,
            failed,
            skipped,
        };
        let mut table = Table::default();
        table.add(&family(Kind::Operations, "tagging"), tally(4, 0, 1));
        table.add(&family(Kind::Client, "rclone 1.60"), tally(3, 2, 0));
        assert_eq!(table.total(), tally(7, 2, 1));
        assert_eq!(
            table.styled(Style::Markdown).to_string(),
            "| operations | passed | failed | skipped |\n| --- | ---: | ---: | ---: |\n| tagging | 4 | 0 | 1 |\n\n\
             | client | passed | failed | skipped |\n| --- | ---: | ---: | ---: |\n| rclone 1.60 | 3 | 2 | 0 |"
        );
        let text = table.styled(Style::Text).to_string();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(
            words[..8],
            ["operations", "passed", "failed", "skipped", "tagging", "4", "0", "1"]
        );
        assert!(
            text.lines()
                .filter(|line| !line.is_empty())
                .all(|line| line.len() == 59),
            "{text}"
        );
    }
}
