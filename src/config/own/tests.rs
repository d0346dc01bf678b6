//! Own settings by file, by flags and by both.

use clap::Parser;
use rstest::rstest;

use super::*;
use crate::config::{ConfigFile, Flags, IptablesVariant, VipSetting};
use std::time::Duration;

const PROXY: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n";
const OWN: &str = "apiVersion: portolan/v1alpha1\nkind: PortolanConfiguration\n";

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    flags: Flags,
}

fn flags(arguments: &[&str]) -> Flags {
    Program::try_parse_from(["portolan"].iter().chain(arguments)).unwrap().flags
}

fn resolve(own: &str, arguments: &[&str]) -> Result<Settings, Vec<ConfigError>> {
    let file = ConfigFile::parse(&format!("{PROXY}---\n{OWN}{own}")).unwrap();
    assert_eq!(file.warnings, Vec::<String>::new());
    Settings::resolve(&flags(arguments), Some(&file))
}

fn messages(errors: Vec<ConfigError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn each_own_setting_is_read_from_the_file_and_from_its_flag_and_shown_again() {
    let everything = "fullSyncPeriod: 1h\nipFamilies: [ipv6]\niptables: {variant: legacy, layout: compact}\n\
        ipvs: {drainTimeout: 0s, vips: routes, serviceCIDRs: [10.96.0.0/12, 'fd00:96::/112'], runEstimation: false}\n";
    let by_file = resolve(everything, &[]).unwrap();
    let arguments = [
        "--full-sync-period=1h",
        "--ip-families=ipv6",
        "--iptables-variant=legacy",
        "--iptables-layout=compact",
        "--ipvs-drain-timeout=0",
        "--ipvs-vips=routes",
        "--ipvs-service-cidrs=10.96.0.0/12",
        "--ipvs-service-cidrs=fd00:96::/112",
        "--ipvs-run-estimation=false",
    ];
    assert_eq!(resolve("", &arguments).unwrap(), by_file);
    assert_eq!((by_file.full_sync_period, by_file.families.v4), (Duration::from_secs(3600), false));
    assert_eq!((by_file.iptables_variant, by_file.ipvs.run_estimation), (IptablesVariant::Legacy, Some(false)));
    let shown = effective_own(&by_file);
    for setting in SETTINGS {
        let pointer = format!("/{}", setting.key.replace('.', "/"));
        let default = effective_own(&Settings::default());
        assert!(shown.pointer(&pointer).is_some_and(|value| !value.is_null()), "{}", setting.key);
        assert_ne!(shown.pointer(&pointer), default.pointer(&pointer), "{} is not in this test", setting.key);
    }
    let file = ConfigFile::parse(&format!("{PROXY}---\n{shown}")).unwrap();
    assert_eq!(Settings::resolve(&Flags::default(), Some(&file)), Ok(by_file));
}

#[test]
fn defaults_that_are_shown_mean_the_defaults() {
    let defaults = Settings::default();
    let file = ConfigFile::parse(&format!("{}\n---\n{PROXY}mode: iptables", effective_own(&defaults))).unwrap();
    assert_eq!(Settings::resolve(&Flags::default(), Some(&file)), Ok(defaults));
}

#[test]
fn every_word_that_help_names_is_taken_and_shown_again() {
    let mut words_seen = 0;
    for setting in SETTINGS {
        let Form::OneOf(words) = setting.form else { continue };
        for word in words {
            let mut settings = Settings::default();
            (setting.set)(&mut settings, word).unwrap();
            assert_eq!((setting.show)(&settings), *word, "{}", setting.key);
            words_seen += 1;
        }
    }
    assert!(words_seen >= 5);
}

#[test]
fn a_flag_beats_the_file_and_an_empty_one_does_not() {
    let drain = |arguments: &[&str]| resolve("ipvs: {drainTimeout: 2m}\n", arguments).unwrap().ipvs.drain_timeout;
    assert_eq!(drain(&["--ipvs-drain-timeout=3s"]), Duration::from_secs(3));
    assert_eq!(drain(&["--ipvs-drain-timeout="]), Duration::from_secs(120));
    let errors = resolve("ipvs: {vips: routes, serviceCIDRs: [10.0.0.0/8]}\n", &["--ipvs-vips=addresses"]);
    assert_eq!(
        messages(errors.unwrap_err()),
        [
            "PortolanConfiguration.ipvs.serviceCIDRs: Invalid value: \"10.0.0.0/8\": has an effect only with --ipvs-vips=routes"
        ]
    );
    assert_eq!(resolve("ipvs: {vips: null, serviceCIDRs: null}\n", &[]).unwrap().ipvs.vips, VipSetting::Addresses);
}

#[test]
fn documents_may_stand_in_any_order_and_be_empty() {
    let own = format!("{OWN}fullSyncPeriod: 1m\n");
    for text in [
        format!("{PROXY}---\n{own}"),
        format!("{own}---\n{PROXY}"),
        format!("# a comment\n---\n{own}\n---\n---\n# nothing\n--- \n{PROXY}---\n"),
        format!("---\n{PROXY}...\n---\n{own}...\n"),
    ] {
        let settings = Settings::resolve(&Flags::default(), Some(&ConfigFile::parse(&text).unwrap())).unwrap();
        assert_eq!(settings.full_sync_period, Duration::from_secs(60), "{text}");
        assert_eq!(settings.mode, crate::config::ProxyMode::Ipvs, "{text}");
    }
}

#[rstest]
#[case(format!("{PROXY}---\n{OWN}---\n{OWN}"), "file: has more than one PortolanConfiguration")]
#[case(format!("{PROXY}---\n{PROXY}"), "file: has more than one KubeProxyConfiguration")]
#[case(OWN.to_owned(), "file: has no KubeProxyConfiguration")]
#[case(format!("{PROXY}---\napiVersion: portolan/v2\nkind: PortolanConfiguration\n"), "apiVersion: Invalid value: \"portolan/v2\"")]
#[case(format!("{PROXY}---\napiVersion: portolan/v1alpha1\nkind: Other\n"), "kind: Invalid value: \"Other\"")]
#[case(format!("{PROXY}---\n[1]\n"), "file: is not a")]
#[case(format!("{PROXY}---\n{OWN}ipvs: {{drainTimeout: 5}}\n"), "PortolanConfiguration.ipvs.drainTimeout: Invalid value: \"5\": must be a string")]
#[case(format!("{PROXY}---\n{OWN}ipvs: {{runEstimation: 1}}\n"), "must be true or false")]
#[case(format!("{PROXY}---\n{OWN}ipFamilies: ipv4\n"), "must be a list of strings")]
#[case(format!("{PROXY}---\n{OWN}a: [\n"), "line 7")]
fn a_file_that_is_not_what_it_should_be_is_refused(#[case] text: String, #[case] says: &str) {
    let errors = messages(ConfigFile::parse(&text).unwrap_err());
    assert!(errors.len() == 1 && errors[0].contains(says), "{errors:?}");
}

#[rstest]
#[case("fullSyncPeriod: 0s", "PortolanConfiguration.fullSyncPeriod: Invalid value: \"0s\": must be greater than 0")]
#[case("fullSyncPeriod: soon", "PortolanConfiguration.fullSyncPeriod: Invalid value: \"soon\": ")]
#[case("ipFamilies: [ipv5]", "PortolanConfiguration.ipFamilies: Invalid value: \"ipv5\": \"ipv5\" is neither")]
#[case(
    "iptables: {variant: new}",
    "PortolanConfiguration.iptables.variant: Invalid value: \"new\": must be one of auto, nft, legacy"
)]
#[case("ipvs: {vips: routes}", "--ipvs-service-cidrs: must not be empty with --ipvs-vips=routes")]
fn a_value_that_makes_no_sense_is_named_by_its_path(#[case] own: &str, #[case] says: &str) {
    let errors = messages(resolve(&format!("{own}\n"), &[]).unwrap_err());
    assert!(errors.len() == 1 && errors[0].starts_with(says), "{errors:?}");
}

#[test]
fn unknown_and_repeated_keys_are_warned_of_with_their_line_in_the_file() {
    let text = format!(
        "{PROXY}ipvs:\n  drainTimeout: 1s\n---\n{OWN}ipvs:\n  strictARP: true\n  drainTimeout: 1s\n  drainTimeout: 2s\nmode: ipvs\n"
    );
    let file = ConfigFile::parse(&text).unwrap();
    let (repeated, others) = file.warnings.split_first().unwrap();
    assert!(repeated.starts_with("line 12: ") && repeated.ends_with("; the last one counts"), "{repeated}");
    assert_eq!(
        others,
        [
            "line 5: unknown field ipvs.drainTimeout; it has no effect",
            "line 10: unknown field ipvs.strictARP; it has no effect",
            "line 13: unknown field mode; it has no effect",
        ]
    );
    let settings = Settings::resolve(&Flags::default(), Some(&file)).unwrap();
    assert_eq!(settings.ipvs.drain_timeout, Duration::from_secs(2));
}

#[test]
fn settings_that_a_running_daemon_cannot_take_are_named() {
    let old = resolve("", &[]).unwrap();
    let new = resolve("fullSyncPeriod: 1h\nipFamilies: [ipv4]\niptables: {variant: nft}\n", &[]).unwrap();
    assert_eq!(own_needing_restart(&old, &new), ["ipFamilies", "iptables.variant"]);
}

/// The settings as a table in Markdown.
fn reference() -> String {
    let defaults = Settings::default();
    let mut table =
        "\n| In the file | Flag | Default | A change takes effect | Means |\n|---|---|---|---|---|\n".to_owned();
    for Setting { key, flag, takes_effect, meaning, show, form, .. } in SETTINGS {
        let default =
            Some(show(&defaults)).filter(|text| !text.is_empty()).map_or("not set".into(), |text| format!("`{text}`"));
        let when = match takes_effect {
            TakesEffect::AtOnce => "at once",
            TakesEffect::AtStart => "at the next start",
        };
        let form = match form {
            Form::OneOf(words) => format!("`{}`", words.join("`, `")),
            Form::Duration => "duration".to_owned(),
            Form::Bool => "`true` or `false`".to_owned(),
            Form::List(_) => "list".to_owned(),
        };
        table += &format!("| `{key}`: {form} | `--{flag}` | {default} | {when} | {meaning} |\n");
    }
    table + "\n"
}

#[test]
fn the_document_has_every_own_setting_in_its_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (above, rest) = document.split_once("<!-- own settings:").unwrap();
    let (note, rest) = rest.split_once("-->\n").unwrap();
    let (_, below) = rest.split_once("<!-- end of own settings -->").unwrap();
    let right = format!("{above}<!-- own settings:{note}-->\n{}<!-- end of own settings -->{below}", reference());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &right).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), right);
}
