//! The rules of this repository that the compiler cannot check: who may import whom, where effects may happen, how
//! long files and functions may be, and what must not be in any file. Each rule is a function from text to findings,
//! with a test that it finds something in bad text, and one test at the end runs all of them on the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The top-level modules, and which others each may use. ARCHITECTURE.md tells why.
const IMPORTS: &[(&str, &[&str])] = &[
    ("net", &[]),
    ("model", &["net"]),
    ("kernel", &["net"]),
    ("compile", &["net", "model"]),
    ("netlink", &["net", "kernel"]),
    ("backend", &["net", "model", "compile", "kernel"]),
    ("iptables", &["net", "model", "compile", "kernel", "netlink", "backend"]),
    ("ipvs", &["net", "model", "compile", "kernel", "backend", "iptables"]),
    ("linux", &["net", "kernel", "netlink"]),
    ("sync", &["net", "model", "compile", "backend", "kernel"]),
    ("source", &["net", "model"]),
    ("config", &["net", "kernel", "compile"]),
    ("metrics", &["net", "model", "kernel", "sync"]),
    ("health", &["net", "model", "sync", "linux"]),
    ("bench", &["net", "model", "kernel", "compile", "backend", "iptables", "ipvs", "linux", "sync"]),
    (
        "cli",
        &[
            "net", "model", "kernel", "compile", "netlink", "backend", "iptables", "ipvs", "linux", "sync", "source",
            "config", "metrics", "health", "bench",
        ],
    ),
    ("main", &["cli"]),
];

/// Paths that stand for an effect or a heavy dependency, and the files that may name them (by the beginning of their
/// path under `src/`).
const CONFINED: &[(&str, &[&str])] = &[
    ("tokio", &["source/", "health/", "cli/", "linux/", "main.rs"]),
    ("kube", &["source/", "cli/"]),
    ("k8s_openapi", &["model/convert", "source/", "cli/"]),
    ("prometheus", &["metrics/"]),
    ("axum", &["health/"]),
    ("clap", &["config/", "cli/", "main.rs"]),
    ("notify", &["source/"]),
    ("netlink_sys", &["netlink/socket.rs", "linux/"]),
    ("rustix", &["netlink/socket.rs", "linux/", "health/", "cli/", "bench/"]),
    ("anyhow", &["cli/", "main.rs"]),
    ("println", &["cli/", "main.rs"]),
    ("eprintln", &["cli/", "main.rs"]),
];

/// Layers that are functions of their arguments: none of these paths appears in them.
const PURE: &[&str] = &[
    "net.rs",
    "model/",
    "compile/",
    "kernel/",
    "backend/",
    "iptables/",
    "ipvs/",
    "netlink/",
    "config/node.rs",
    "config/duration.rs",
];
const IMPURE_PATHS: &[&str] =
    &["tracing", "std::fs", "std::process", "std::env", "std::thread", "std::net::TcpStream", "std::net::UdpSocket"];

const MAX_FILE_LINES: usize = 600;
const MAX_MEDIAN_FILE_LINES: usize = 250;
const MAX_FUNCTION_LINES: usize = 70;

/// Words that must not stand in any file: work that was put off, tests that are switched off, paths of one machine.
/// Put together from pieces so that this file does not contain them.
fn forbidden_words() -> Vec<String> {
    [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["XX", "X:"],
        ["todo", "!("],
        ["unimplemented", "!("],
        ["#[igno", "re"],
        ["/wo", "rk/"],
        ["/ho", "me/"],
        ["/Use", "rs/"],
    ]
    .iter()
    .map(|pieces| pieces.concat())
    .collect()
}

// === The rules ===

/// Uses of modules that stand above the one in which they are used. `file` is the path under `src/`.
fn import_findings(file: &str, source: &str) -> Vec<String> {
    let module = file.split(['/', '.']).next().unwrap_or_default();
    if module == "lib" || is_test_file(file) {
        return Vec::new();
    }
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
        return vec![format!("{file}: the module `{module}` is not in the import table of tests/tidy.rs")];
    };
    product_paths(source)
        .into_iter()
        .filter_map(|(line, path)| {
            let target = path.strip_prefix("crate::").or_else(|| path.strip_prefix("portolan::"))?;
            let target = target.split("::").next().unwrap_or_default();
            let known = IMPORTS.iter().any(|(name, _)| *name == target);
            (known && target != module && !allowed.contains(&target))
                .then(|| format!("{file}:{line}: `{module}` must not use `{target}`"))
        })
        .collect()
}

/// Uses of confined dependencies outside their places, and of effects in pure layers.
fn effect_findings(file: &str, source: &str) -> Vec<String> {
    if is_test_file(file) {
        return Vec::new();
    }
    let pure = PURE.iter().any(|place| file.starts_with(place)) && !file.starts_with("netlink/socket");
    let begins = |path: &str, what: &str| path == what || path.strip_prefix(what).is_some_and(|r| r.starts_with("::"));
    let mut findings = Vec::new();
    for (line, path) in product_paths(source) {
        for (what, places) in CONFINED {
            if begins(&path, what) && !places.iter().any(|place| file.starts_with(place)) {
                findings.push(format!("{file}:{line}: `{what}` belongs to {}", places.join(", ")));
            }
        }
        for what in IMPURE_PATHS {
            if pure && begins(&path, what) {
                findings.push(format!("{file}:{line}: `{what}` has no place in a pure layer"));
            }
        }
    }
    findings
}

/// Functions of the product that are too long, from signature to closing brace.
fn function_findings(file: &str, source: &str) -> Vec<String> {
    if is_test_file(file) {
        return Vec::new();
    }
    struct Functions<'a> {
        file: &'a str,
        findings: Vec<String>,
    }
    impl Functions<'_> {
        fn judge(&mut self, signature: &syn::Signature, block: &syn::Block) {
            let lines = block.span().end().line - signature.span().start().line + 1;
            if lines > MAX_FUNCTION_LINES {
                let (file, name) = (self.file, &signature.ident);
                self.findings
                    .push(format!("{file}: function `{name}` has {lines} lines, more than {MAX_FUNCTION_LINES}"));
            }
        }
    }
    impl<'ast> Visit<'ast> for Functions<'_> {
        fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
            if !is_test_only(&item.attrs) {
                visit::visit_item_mod(self, item);
            }
        }
        fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
            if !is_test_only(&item.attrs) {
                self.judge(&item.sig, &item.block);
                visit::visit_item_fn(self, item);
            }
        }
        fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
            self.judge(&item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
        fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
            if let Some(block) = &item.default {
                self.judge(&item.sig, block);
            }
            visit::visit_trait_item_fn(self, item);
        }
    }
    let mut functions = Functions { file, findings: Vec::new() };
    functions.visit_file(&parse(source));
    functions.findings
}

/// Files that are too long, and the median when it is.
fn size_findings(sizes: &BTreeMap<String, usize>) -> Vec<String> {
    let mut findings: Vec<String> = sizes
        .iter()
        .filter(|(_, lines)| **lines > MAX_FILE_LINES)
        .map(|(file, lines)| format!("{file}: {lines} lines, more than {MAX_FILE_LINES}"))
        .collect();
    let mut sorted: Vec<usize> = sizes.values().copied().collect();
    sorted.sort_unstable();
    if let Some(median) = sorted.get(sorted.len() / 2)
        && *median > MAX_MEDIAN_FILE_LINES
    {
        findings.push(format!("the median file has {median} lines, more than {MAX_MEDIAN_FILE_LINES}"));
    }
    findings
}

/// Forbidden words in a text.
fn word_findings(file: &str, text: &str) -> Vec<String> {
    let words = forbidden_words();
    text.lines()
        .enumerate()
        .flat_map(|(at, line)| {
            let hits = words.iter().filter(move |word| line.contains(word.as_str()));
            hits.map(move |word| format!("{file}:{}: must not contain `{word}`", at + 1))
        })
        .collect()
}

/// Dependencies in a manifest that the list of dependencies does not explain, and explanations of what is gone.
fn dependency_findings(manifests: &[&str], document: &str) -> Vec<String> {
    let used: Vec<String> = manifests.iter().flat_map(|manifest| dependencies(manifest)).collect();
    let explained: Vec<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once('`').map(|(name, _)| name))
        .collect();
    let missing = used.iter().filter(|name| !explained.contains(&name.as_str()));
    let stale = explained.iter().filter(|name| !used.iter().any(|used| used == *name));
    missing
        .map(|name| format!("docs/dependencies.md: no row for the dependency `{name}`"))
        .chain(stale.map(|name| format!("docs/dependencies.md: `{name}` is not a dependency")))
        .collect()
}

// === Reading source ===

/// Tests that the document names and that are in no source.
fn behaviour_findings(document: &str, sources: &str) -> Vec<String> {
    let names = document.split('`').skip(1).step_by(2).filter(|word| word.len() > 20 && word.contains('_'));
    names
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'))
        .filter(|name| !sources.contains(&format!("fn {name}(")))
        .map(|name| format!("docs: there is no test `{name}`"))
        .collect()
}

fn is_test_file(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/")
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.meta.to_token_stream().to_string().replace(' ', "");
        text == "test" || text == "cfg(test)" || text.starts_with("cfg(all(test")
    })
}

fn parse(source: &str) -> syn::File {
    syn::parse_file(source).expect("source that compiles")
}

/// Every path `a::b::c` in a source file outside test modules, `use` groups spread out, with its line. Works on tokens,
/// so that paths within macros are seen too.
fn product_paths(source: &str) -> Vec<(usize, String)> {
    let mut file = parse(source);
    remove_tests(&mut file.items);
    let mut paths = Vec::new();
    collect_paths(file.to_token_stream(), "", &mut paths);
    paths
}

fn remove_tests(items: &mut Vec<syn::Item>) {
    items.retain(|item| match item {
        syn::Item::Mod(item) => !is_test_only(&item.attrs),
        syn::Item::Fn(item) => !is_test_only(&item.attrs),
        syn::Item::Use(item) => !is_test_only(&item.attrs),
        syn::Item::Impl(item) => !is_test_only(&item.attrs),
        _ => true,
    });
    for item in items {
        if let syn::Item::Mod(syn::ItemMod { content: Some((_, inner)), .. }) = item {
            remove_tests(inner);
        }
    }
}

fn collect_paths(tokens: TokenStream, prefix: &str, paths: &mut Vec<(usize, String)>) {
    let mut path = prefix.to_owned();
    let mut line = 0;
    let mut colons = 0;
    let mut finish = |path: &mut String, line: usize| {
        if path.len() > prefix.len() {
            paths.push((line, path.clone()));
        }
        prefix.clone_into(path);
    };
    let mut groups = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                if colons != 2 && path.len() > prefix.len() {
                    finish(&mut path, line);
                }
                if !path.is_empty() {
                    path.push_str("::");
                }
                path.push_str(&ident.to_string());
                line = ident.span().start().line;
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                let inherited = if colons == 2 { path.clone() } else { String::new() };
                finish(&mut path, line);
                groups.push((group.stream(), inherited));
                colons = 0;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {
                finish(&mut path, line);
                colons = 0;
            }
        }
    }
    finish(&mut path, line);
    for (stream, inherited) in groups {
        collect_paths(stream, &inherited, paths);
    }
}

/// The names in all `[dependencies]`-like sections of a manifest, without our own packages.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim_matches(['[', ']']).ends_with("dependencies");
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && !line.starts_with([' ', '#', '}', ']'])
            && !value.contains("path =")
        {
            names.push(name.trim().to_owned());
        }
    }
    names
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file that is ours, by its path from the root, with its content.
fn files() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root().to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("a readable directory") {
            let path: PathBuf = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    pending.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                let relative = path.strip_prefix(root()).expect("a path below the root");
                found.insert(relative.to_string_lossy().into_owned(), text);
            }
        }
    }
    found
}

fn source_files() -> BTreeMap<String, String> {
    files()
        .into_iter()
        .filter(|(file, _)| file.ends_with(".rs"))
        .filter_map(|(file, text)| file.strip_prefix("src/").map(|file| (file.to_owned(), text)))
        .collect()
}

// === The repository ===

#[test]
fn the_repository_keeps_all_rules() {
    let mut findings = Vec::new();
    let sources = source_files();
    assert!(sources.contains_key("lib.rs"), "the sources were not found");
    for (file, text) in &sources {
        findings.extend(import_findings(file, text));
        findings.extend(effect_findings(file, text));
        findings.extend(function_findings(file, text));
    }
    findings.extend(size_findings(&sources.iter().map(|(file, text)| (file.clone(), text.lines().count())).collect()));
    let all = files();
    for (file, text) in &all {
        // Our own lock file and the licence are not our words; this git file names where a work tree lives.
        if !["Cargo.lock", "LICENSE", ".git"].contains(&file.as_str()) {
            findings.extend(word_findings(file, text));
        }
    }
    let manifests = [&all["Cargo.toml"], &all["xtask/Cargo.toml"]].map(String::as_str);
    findings.extend(dependency_findings(&manifests, &all["docs/dependencies.md"]));
    let code: String = all.iter().filter(|(file, _)| file.ends_with(".rs")).map(|(_, text)| text.as_str()).collect();
    for document in ["docs/behaviours.md", "docs/reliability.md"] {
        findings.extend(behaviour_findings(&all[document], &code));
    }
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

// === Each rule finds something ===

#[test]
fn a_behaviour_without_its_test_is_found() {
    let document = "| 1 | Something | `a_test_that_is_really_there`, `a_test_that_was_renamed_long_ago` |";
    let found = behaviour_findings(document, "fn a_test_that_is_really_there() {}");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("a_test_that_was_renamed_long_ago"));
}

#[test]
fn a_lower_layer_that_uses_a_higher_one_is_found() {
    for bad in [
        "use crate::sync::SyncReport;",
        "use crate::{net::IpFamily, sync::SyncReport};",
        "fn f() -> crate::sync::SyncReport { g() }",
        "fn f() { assert!(crate::sync::g()); }",
        "mod inner { use crate::sync::SyncReport; }",
    ] {
        assert_eq!(import_findings("kernel/op.rs", bad).len(), 1, "{bad}");
    }
    for good in [
        "use crate::net::IpFamily;",
        "use crate::kernel::Op; use std::sync::Arc;",
        "#[cfg(test)] mod tests { use crate::sync::SyncReport; }",
        "/// See [`crate::sync::SyncReport`].\nstruct S;",
    ] {
        assert!(import_findings("kernel/op.rs", good).is_empty(), "{good}");
    }
    assert_eq!(import_findings("novel/mod.rs", "").len(), 1, "a module without a line in the table");
}

#[test]
fn the_import_table_has_no_cycle() {
    for (at, (module, allowed)) in IMPORTS.iter().enumerate() {
        for used in *allowed {
            assert!(
                IMPORTS[..at].iter().any(|(name, _)| name == used),
                "`{module}` uses `{used}`, which is not above it"
            );
        }
    }
}

#[test]
fn an_effect_in_the_wrong_place_is_found() {
    for (file, bad) in [
        ("compile/plan.rs", "use tracing::warn;"),
        ("kernel/op.rs", "fn f() { tracing::warn!(\"x\"); }"),
        ("model/node.rs", "use std::{fmt, fs::read};"),
        ("sync/mod.rs", "use prometheus::Counter;"),
        ("sync/mod.rs", "fn f() { println!(\"x\"); }"),
        ("sync/mod.rs", "async fn f() { tokio::time::sleep(d).await }"),
    ] {
        assert_eq!(effect_findings(file, bad).len(), 1, "{file}: {bad}");
    }
    for (file, good) in [
        ("source/kube.rs", "use tokio::sync::mpsc; use tracing::warn;"),
        ("metrics/mod.rs", "use prometheus::Counter;"),
        ("cli/mod.rs", "fn f() { println!(\"x\"); }"),
    ] {
        assert!(effect_findings(file, good).is_empty(), "{file}: {good}");
    }
}

#[test]
fn a_long_function_is_found() {
    let long = |attribute: &str| {
        format!("impl S {{ }}\n{attribute}fn f() {{\n{}}}\n", "    g();\n".repeat(MAX_FUNCTION_LINES))
    };
    assert_eq!(function_findings("sync/mod.rs", &long("")).len(), 1);
    assert!(function_findings("sync/mod.rs", &long("#[test]\n")).is_empty());
    let method = format!("impl S {{ fn f() {{\n{}}} }}", "    g();\n".repeat(MAX_FUNCTION_LINES));
    assert_eq!(function_findings("sync/mod.rs", &method).len(), 1);
    let longest = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(MAX_FUNCTION_LINES - 2));
    assert!(function_findings("sync/mod.rs", &longest).is_empty());
}

#[test]
fn a_long_file_and_a_high_median_are_found() {
    let sizes = |lines: &[usize]| lines.iter().enumerate().map(|(at, lines)| (format!("{at}.rs"), *lines)).collect();
    assert!(size_findings(&sizes(&[10, 250, 600])).is_empty());
    assert_eq!(size_findings(&sizes(&[10, 20, 601])).len(), 1);
    assert_eq!(size_findings(&sizes(&[10, 251, 600])).len(), 1);
}

#[test]
fn a_forbidden_word_is_found() {
    for word in forbidden_words() {
        assert_eq!(word_findings("a.md", &format!("line\nsome {word} here\n")).len(), 1, "{word}");
    }
    assert!(word_findings("a.md", "nothing to do, no home, work\n").is_empty());
}

#[test]
fn a_dependency_without_an_explanation_is_found() {
    let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nserde = \"1\"\n\n[dev-dependencies]\nrstest = \"1\"\n\n[lints]\na = 1\n";
    assert!(dependency_findings(&[manifest], "| `serde` | why |\n| `rstest` | why |\n").is_empty());
    assert_eq!(dependency_findings(&[manifest], "| `serde` | why |\n").len(), 1, "missing");
    assert_eq!(dependency_findings(&[manifest], "| `serde` | |\n| `rstest` | |\n| `gone` | |\n").len(), 1, "stale");
}
