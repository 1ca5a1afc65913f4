//! Samples and how they are shown: median, least and most, as a table and as CSV.

use std::fmt::Write as _;
use std::time::Duration;

/// One column of one row: all runs.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn push_ms(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e3);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut all = self.0.clone();
        all.sort_by(f64::total_cmp);
        all
    }

    pub fn median(&self) -> f64 {
        let all = self.sorted();
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn shown(&self, digits: usize) -> String {
        let all = self.sorted();
        match (all.first(), all.last()) {
            (Some(least), Some(most)) if all.len() > 1 => {
                format!("{:.digits$} ({least:.digits$}..{most:.digits$})", self.median())
            }
            (Some(only), _) => format!("{only:.digits$}"),
            _ => "-".into(),
        }
    }
}

/// A titled table; cells are samples, or `None` where a row has no such figure.
pub struct Table {
    title: String,
    columns: Vec<&'static str>,
    digits: usize,
    rows: Vec<(String, Vec<Option<Samples>>)>,
}

impl Table {
    pub fn new(title: impl Into<String>, columns: &[&'static str], digits: usize) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), digits, rows: Vec::new() }
    }

    pub fn row(&mut self, name: impl Into<String>, cells: Vec<Option<Samples>>) {
        self.rows.push((name.into(), cells));
    }

    /// Prints it and appends its CSV: table,row,column,runs,median,least,most.
    pub fn show(&self, csv: &mut String) {
        println!("\n{}", self.title);
        let first = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let text = |cell: &Option<Samples>| cell.as_ref().map_or("-".into(), |c| c.shown(self.digits));
        let width = |i: usize| {
            let cells = self.rows.iter().map(|(_, cells)| text(&cells[i]).len());
            cells.chain([self.columns[i].len()]).max().unwrap_or(0)
        };
        let mut head = format!("  {:first$}", "");
        for (i, column) in self.columns.iter().enumerate() {
            let _ = write!(head, "  {column:>w$}", w = width(i));
        }
        println!("{head}");
        for (name, cells) in &self.rows {
            let mut line = format!("  {name:first$}");
            for (i, cell) in cells.iter().enumerate() {
                let _ = write!(line, "  {:>w$}", text(cell), w = width(i));
            }
            println!("{line}");
            for (column, cell) in self.columns.iter().zip(cells) {
                let Some(all) = cell.as_ref().map(Samples::sorted).filter(|all| !all.is_empty()) else { continue };
                let median = all[all.len() / 2];
                let _ = writeln!(
                    csv,
                    "{:?},{name:?},{column:?},{},{median},{},{}",
                    self.title,
                    all.len(),
                    all[0],
                    all[all.len() - 1]
                );
            }
        }
    }
}
