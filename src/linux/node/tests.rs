//! The table of sysctls, on a directory that stands for `/`.

use rstest::rstest;

use super::*;
use std::time::Duration;

const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "sys/module/nf_conntrack/parameters/hashsize";

#[rstest]
#[case::nothing_without_a_number_per_processor(0, 500_000, 8, None)]
#[case::scaled(32_768, 131_072, 8, Some(262_144))]
#[case::the_minimum(32_768, 131_072, 2, Some(131_072))]
#[case::the_cap(32_768, 131_072, 64, Some(1_048_576))]
#[case::exactly_the_cap(32_768, 131_072, 32, Some(1_048_576))]
#[case::a_minimum_above_the_cap_is_kept(32_768, 2_000_000, 64, Some(2_000_000))]
#[case::no_overflow(u32::MAX, 0, u64::MAX, Some(1_048_576))]
fn the_number_of_entries_follows_from_processors_cap_and_minimum(
    #[case] max_per_core: u32,
    #[case] min: u32,
    #[case] processors: u64,
    #[case] expected: Option<u64>,
) {
    assert_eq!(max_entries(&Conntrack { max_per_core, min, ..Conntrack::default() }, processors), expected);
}

#[rstest]
#[case::other(Rule::Exactly, "5\n", true)]
#[case::same(Rule::Exactly, "7\n", false)]
#[case::larger(Rule::Exactly, "9", true)]
#[case::enough(Rule::AtLeast, "9\n", false)]
#[case::just_enough(Rule::AtLeast, "7\n", false)]
#[case::too_little(Rule::AtLeast, "6\n", true)]
#[case::nonsense(Rule::AtLeast, "x", true)]
fn only_what_differs_is_written(#[case] rule: Rule, #[case] found: &str, #[case] written: bool) {
    let wanted = Wanted { file: MAX, value: 7, rule };
    assert_eq!(to_write(&wanted, found), written.then(|| "7".to_owned()));
}

#[rstest]
#[case("0\n", Some(1))]
#[case("0-3\n", Some(4))]
#[case("0-3,8,10-11\n", Some(7))]
#[case("3-0", None)]
#[case("", None)]
#[case("x", None)]
fn lists_of_processors_are_counted(#[case] list: &str, #[case] expected: Option<u64>) {
    assert_eq!(count(list), expected);
}

fn node(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (file, content) in files {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    root
}

fn content(root: &tempfile::TempDir, file: &str) -> String {
    std::fs::read_to_string(root.path().join(file)).unwrap()
}

/// Everything that can be wanted, each file with another value.
fn everything() -> (Conntrack, [(&'static str, &'static str); 7]) {
    let wanted = Conntrack {
        max_per_core: 1000,
        min: 0,
        tcp_established_timeout: Duration::from_secs(86_400),
        tcp_close_wait_timeout: Duration::from_secs(3600),
        tcp_be_liberal: true,
        udp_timeout: Duration::from_millis(200),
        udp_stream_timeout: Duration::from_millis(60_900),
    };
    let files = [
        (MAX, "4000"),
        (BUCKETS, "1000"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", "86400"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", "1"),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", "60"),
    ];
    (wanted, files)
}

#[test]
fn every_file_gets_what_is_wanted() {
    let (wanted, expected) = everything();
    let mut files = expected.map(|(file, _)| (file, "17\n")).to_vec();
    files.push(("sys/devices/system/cpu/online", "0-3\n"));
    let root = node(&files);
    assert_eq!(conntrack_below(root.path(), &wanted).unwrap(), Vec::<String>::new());
    for (file, value) in expected {
        assert_eq!(content(&root, file), value, "{file}");
    }
}

#[test]
fn what_is_not_wanted_is_not_even_read() {
    let root = node(&[]);
    assert_eq!(conntrack_below(root.path(), &Conntrack { min: 9, ..Conntrack::default() }).unwrap(), [""; 0]);
}

#[test]
fn a_file_that_is_as_it_should_be_is_not_written() {
    let (wanted, expected) = everything();
    // With white space around it, which a write would remove.
    let texts = expected.map(|(file, value)| (file, format!("{value}\n")));
    let mut files: Vec<(&str, &str)> = texts.iter().map(|(file, text)| (*file, text.as_str())).collect();
    files.push(("sys/devices/system/cpu/online", "0-3\n"));
    let root = node(&files);
    conntrack_below(root.path(), &wanted).unwrap();
    for (file, text) in texts {
        assert_eq!(content(&root, file), text, "{file}");
    }
}

#[test]
fn a_missing_file_is_a_remark_that_names_it_and_the_rest_is_done() {
    let (wanted, expected) = everything();
    let mut files = expected[2..].iter().map(|(file, _)| (*file, "17\n")).collect::<Vec<_>>();
    files.push(("sys/devices/system/cpu/online", "0-3\n"));
    let root = node(&files);
    let remarks = conntrack_below(root.path(), &wanted).unwrap();
    assert_eq!(remarks.len(), 2, "{remarks:?}");
    assert!(remarks[0].contains(MAX) && remarks[0].contains("nf_conntrack loaded"), "{}", remarks[0]);
    assert!(remarks[1].contains(BUCKETS), "{}", remarks[1]);
    assert!(!root.path().join(MAX).exists(), "nothing is created");
    for (file, value) in &expected[2..] {
        assert_eq!(content(&root, file), *value, "{file}");
    }
}

#[test]
fn what_the_kernel_refuses_is_an_error_that_names_the_file() {
    let root = node(&[]);
    // A directory can neither be read nor written as a file, whoever asks.
    std::fs::create_dir_all(root.path().join(MAX)).unwrap();
    let wanted = Conntrack { max_per_core: 1, ..Conntrack::default() };
    let error = conntrack_below(root.path(), &wanted).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.to_string().contains(MAX), "{error}");
}

#[test]
fn a_file_that_must_not_be_written_is_denied_and_no_reason_to_end() {
    for kind in [IoErrorKind::PermissionDenied, IoErrorKind::ReadOnlyFilesystem, IoErrorKind::Unsupported] {
        assert_eq!(failed("writing", Path::new("/x"), &kind.into()).kind, ErrorKind::Denied);
    }
    assert_eq!(failed("writing", Path::new("/x"), &IoErrorKind::InvalidInput.into()).kind, ErrorKind::Rejected);
}

#[test]
fn the_oom_score_is_set_or_said_why_not() {
    let root = node(&[("proc/self/oom_score_adj", "0\n")]);
    assert_eq!(oom_score_below(root.path(), -999), None);
    assert_eq!(content(&root, "proc/self/oom_score_adj"), "-999");
    let remark = oom_score_below(node(&[]).path(), -999).unwrap();
    assert!(remark.contains("oom_score_adj"), "{remark}");
}
