//! Aligned columns.

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Lines of aligned columns, two spaces between them, the headings first.
#[must_use]
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, (heading, _))| {
            let cells = rows.iter().map(|row| width(&row[index]));
            cells.max().unwrap_or(0).max(width(heading))
        })
        .collect();
    let headings = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for ((cell, (_, align)), &column) in row.iter().zip(columns).zip(&widths) {
            let padding = " ".repeat(column - width(cell));
            match align {
                Align::Left => line.push_str(&format!("{cell}{padding}  ")),
                Align::Right => line.push_str(&format!("{padding}{cell}  ")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["wéb".to_owned(), "5".to_owned()], vec!["x".into(), "1000".into()]];
        let text = table(&[("RULE", Align::Left), ("N", Align::Right)], &rows);
        assert_eq!(text, "RULE     N\nwéb      5\nx     1000\n");
    }
}
