//! The table: what, how much of it may be, how much it is.

/// What is said about a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A count within its budget.
    Held,
    /// A count that is over it.
    Over,
    /// A time, or a count without a budget.
    NotJudged,
    /// It could not be measured here.
    LeftOut,
}

/// The rows so far.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<(String, String, String, Verdict)>,
}

impl Table {
    /// A count and the most that it may be, in any unit; `text` says it for people.
    pub(crate) fn count(&mut self, what: &str, most: f64, budget: &str, measured: f64, text: &str) {
        let verdict = if measured <= most { Verdict::Held } else { Verdict::Over };
        self.add(what, budget, text, verdict);
    }

    /// Memory in bytes, and the most that it may be in megabytes (1 MB is 1,000,000 bytes).
    pub(crate) fn memory(&mut self, what: &str, most: u32, measured: u64) {
        let text = format!("{:.1} MB", megabytes(measured));
        self.count(what, f64::from(most), &format!("{most} MB"), megabytes(measured), &text);
    }

    /// What is only printed.
    pub(crate) fn told(&mut self, what: &str, budget: &str, measured: &str) {
        self.add(what, budget, measured, Verdict::NotJudged);
    }

    /// What could not be measured, and why.
    pub(crate) fn left_out(&mut self, what: &str, why: &str) {
        self.add(what, "", why, Verdict::LeftOut);
    }

    fn add(&mut self, what: &str, budget: &str, measured: &str, verdict: Verdict) {
        println!("  {what}: {measured}");
        self.rows.push((what.to_owned(), budget.to_owned(), measured.to_owned(), verdict));
    }

    /// Prints it; returns how many counts are over their budgets.
    pub(crate) fn print(&self) -> usize {
        println!("\n| what | budget | measured | |\n|---|---:|---:|---|");
        for (what, budget, measured, verdict) in &self.rows {
            let verdict = match verdict {
                Verdict::Held => "held",
                Verdict::Over => "**over**",
                Verdict::NotJudged => "",
                Verdict::LeftOut => "left out",
            };
            println!("| {what} | {budget} | {measured} | {verdict} |");
        }
        self.rows.iter().filter(|(.., verdict)| *verdict == Verdict::Over).count()
    }
}

/// Bytes as megabytes.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
