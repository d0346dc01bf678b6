//! portolan against the real kernel with a big cluster, and `iptables-restore` fed with the same text by hand.
//!
//! Wants root; says so and ends otherwise. Everything happens in network namespaces made for it. Each column is measured
//! in processes of their own, so that memory is that of one proxy. Settings, by environment:
//!
//! - `PORTOLAN_BENCH_SERVICES`: Services with five endpoints each; 10000 unless set
//! - `PORTOLAN_BENCH_VARIANTS`: `nft,legacy` unless set
//! - `PORTOLAN_BENCH_LAYOUT`: `compact` for that layout of iptables mode; `kube-proxy` unless set
//! - `PORTOLAN_BENCH_LIMITS`: limits of operations per transaction for nft, `500` unless set; with more than one, a column
//!   for each
//! - `PORTOLAN_BENCH_WHOLE=1`: by hand, give nft everything at once, too: that takes minutes

#![allow(missing_docs, reason = "a program, not a library")]

mod measure;
#[path = "../support/mod.rs"]
mod support;

use measure::{measure_by_hand, measure_portolan, print_cells, run_self, variant_of};
use support::fleet::Fleet;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["portolan", variant, services, limit] => {
            print_cells(&measure_portolan(variant_of(variant)?, Fleet::of(services.parse()?), limit.parse()?)?);
        }
        ["hand", variant, services, how] => {
            print_cells(&measure_by_hand(variant_of(variant)?, Fleet::of(services.parse()?), how == "in pieces")?);
        }
        _ if !rustix::process::geteuid().is_root() => {
            println!("the benchmark of the real kernel wants root, to make network namespaces; skipped");
        }
        _ => table()?,
    }
    Ok(())
}

// === the table ===

fn table() -> Outcome<()> {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let services = setting("PORTOLAN_BENCH_SERVICES", "10000");
    let whole = std::env::var_os("PORTOLAN_BENCH_WHOLE").is_some();
    let by_hand_nft: &[&str] = if whole { &["in pieces", "at once"] } else { &["in pieces"] };
    let mut columns = Vec::new();
    for variant in setting("PORTOLAN_BENCH_VARIANTS", "nft,legacy").split(',') {
        let unlimited = usize::MAX.to_string();
        let limits = if variant == "nft" { setting("PORTOLAN_BENCH_LIMITS", "500") } else { unlimited.clone() };
        for limit in limits.split(',') {
            let name = if limit == unlimited { variant.to_owned() } else { format!("{variant}, {limit}") };
            columns.push((format!("portolan, {name}"), run_self(&["portolan", variant, &services, limit])?));
        }
        for how in if variant == "nft" { by_hand_nft } else { &["at once"] } {
            columns.push((format!("by hand, {variant}, {how}"), run_self(&["hand", variant, &services, how])?));
        }
    }
    let mut labels: Vec<String> = Vec::new();
    for (label, _) in columns.iter().flat_map(|(_, cells)| cells) {
        if !labels.contains(label) {
            labels.push(label.clone());
        }
    }
    println!("\n{services} Services with 5 endpoints each\n");
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    println!("| | {} |\n|---|{}", names.join(" | "), "---:|".repeat(columns.len()));
    for label in &labels {
        let cell = |cells: &[(String, String)]| {
            cells.iter().find(|(of, _)| of == label).map_or("", |(_, value)| value).to_owned()
        };
        let cells: Vec<String> = columns.iter().map(|(_, cells)| cell(cells)).collect();
        println!("| {label} | {} |", cells.join(" | "));
    }
    Ok(())
}
