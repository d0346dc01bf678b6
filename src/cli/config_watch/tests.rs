use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use super::*;

/// Long enough for a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A file with this `iptables.masqueradeBit`, by which the tests tell files apart.
fn text(bit: i32) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\niptables: {{masqueradeBit: {bit}}}\n"
    )
}

struct Rig {
    directory: tempfile::TempDir,
    reloads: Receiver<Reload>,
    _watch: ConfigWatch,
}

impl Rig {
    /// A plain file with bit 1, watched.
    fn new() -> Rig {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.conf"), text(1)).unwrap();
        Rig::watch(directory).after_the_first()
    }

    /// The volume of a ConfigMap as kubelet makes it, with bit 1, watched.
    fn volume() -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        fs::create_dir(at.join("..2026_01")).unwrap();
        fs::write(at.join("..2026_01/config.conf"), text(1)).unwrap();
        symlink("..2026_01", at.join("..data")).unwrap();
        symlink("..data/config.conf", at.join("config.conf")).unwrap();
        Rig::watch(directory).after_the_first()
    }

    fn after_the_first(self) -> Rig {
        assert_eq!(self.changed(), 1, "what is there at the start is reported");
        self
    }

    fn watch(directory: tempfile::TempDir) -> Rig {
        let path = directory.path().join("config.conf").display().to_string();
        let flags = Flags { config: Some(path), ..Flags::default() };
        let (sender, reloads) = channel();
        let watch = ConfigWatch::start(flags, move |reload| sender.send(reload).unwrap()).unwrap();
        Rig { directory, reloads, _watch: watch }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("config.conf")
    }

    fn write(&self, content: &str) {
        fs::write(self.path(), content).unwrap();
    }

    /// As kubelet does it: a new directory, the link renamed over, the old directory removed.
    fn swap(&self, old: &str, new: &str, content: &str) {
        let at = self.directory.path();
        fs::create_dir(at.join(new)).unwrap();
        fs::write(at.join(new).join("config.conf"), content).unwrap();
        symlink(new, at.join("..data_tmp")).unwrap();
        fs::rename(at.join("..data_tmp"), at.join("..data")).unwrap();
        fs::remove_dir_all(at.join(old)).unwrap();
    }

    fn next(&self) -> Reload {
        self.reloads.recv_timeout(DEADLINE).unwrap()
    }

    /// The bit of the settings that are reported next.
    fn changed(&self) -> u8 {
        match self.next() {
            Reload::Read { settings, .. } => settings.masquerade_bit,
            Reload::Refused(errors) => panic!("refused: {errors:?}"),
        }
    }

    fn refused(&self) -> String {
        match self.next() {
            Reload::Read { settings, .. } => panic!("taken: {settings:?}"),
            Reload::Refused(errors) => errors[0].to_string(),
        }
    }
}

#[test]
fn a_volume_of_a_config_map_is_followed_from_one_directory_to_the_next() {
    let rig = Rig::volume();
    rig.swap("..2026_01", "..2026_02", &text(2));
    assert_eq!(rig.changed(), 2);
    rig.swap("..2026_02", "..2026_03", &text(3));
    assert_eq!(rig.changed(), 3);
    // Not done by kubelet, but by people, and only in the directory that the link now leads to.
    fs::write(rig.directory.path().join("..2026_03/config.conf"), text(4)).unwrap();
    assert_eq!(rig.changed(), 4);
}

#[test]
fn a_file_edited_in_place_is_read_again() {
    let rig = Rig::new();
    rig.write(&text(2));
    assert_eq!(rig.changed(), 2);
    rig.write(&text(1));
    assert_eq!(rig.changed(), 1);
}

#[test]
fn a_file_renamed_over_the_old_one_is_read() {
    let rig = Rig::new();
    for bit in [2, 3] {
        let new = rig.directory.path().join("config.conf.new");
        fs::write(&new, text(i32::from(bit))).unwrap();
        fs::rename(new, rig.path()).unwrap();
        assert_eq!(rig.changed(), bit);
    }
}

#[test]
fn a_file_that_goes_is_refused_and_the_one_that_comes_back_is_read() {
    let rig = Rig::new();
    fs::remove_file(rig.path()).unwrap();
    assert!(rig.refused().contains("cannot be read"));
    rig.write(&text(2));
    assert_eq!(rig.changed(), 2);
}

#[test]
fn a_directory_that_is_replaced_is_watched_again() {
    let rig = Rig::new();
    fs::remove_dir_all(rig.directory.path()).unwrap();
    assert!(rig.refused().contains("cannot be read"));
    fs::create_dir(rig.directory.path()).unwrap();
    rig.write(&text(2));
    assert_eq!(rig.changed(), 2);
    rig.write(&text(3));
    assert_eq!(rig.changed(), 3);
}

#[test]
fn wrong_text_is_refused_once_and_right_text_after_it_is_taken() {
    let rig = Rig::new();
    rig.write(&text(77));
    assert!(rig.refused().contains("MasqueradeBit"));
    // The same text again, and then text that cannot be read: only the latter is reported.
    rig.write(&text(77));
    rig.write("kind: [");
    let reason = rig.refused();
    assert!(!reason.contains("MasqueradeBit"), "{reason}");
    rig.write(&text(2));
    assert_eq!(rig.changed(), 2);
}

#[test]
fn the_same_text_in_another_directory_is_not_reported() {
    let rig = Rig::volume();
    rig.swap("..2026_01", "..2026_02", &text(1));
    // The next report is about the next change.
    rig.swap("..2026_02", "..2026_03", &text(2));
    assert_eq!(rig.changed(), 2);
}

#[test]
fn what_is_in_the_file_in_vain_is_reported_with_the_settings() {
    let rig = Rig::new();
    rig.write(&format!("{}nonsense: 1\n", text(2)));
    let Reload::Read { settings, warnings } = rig.next() else { panic!("refused") };
    assert_eq!(settings.masquerade_bit, 2);
    assert!(warnings.iter().any(|warning| warning.contains("nonsense")), "{warnings:?}");
}

#[test]
fn a_burst_ends_in_the_last_text_and_costs_few_reports() {
    let rig = Rig::new();
    for at in 0..500 {
        rig.write(&text(2 + at % 20));
    }
    rig.write(&text(31));
    let mut reports = 1;
    while rig.changed() != 31 {
        reports += 1;
    }
    assert!(reports < 100, "{reports} reports of 501 writes");
}

#[test]
fn a_change_before_the_watch_began_is_found() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.conf"), text(2)).unwrap();
    let rig = Rig::watch(directory);
    assert_eq!(rig.changed(), 2);
}

#[test]
fn without_a_file_there_is_nothing_to_watch() {
    let error = ConfigWatch::start(Flags::default(), |_| ()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

/// No thread and no real time: what each look leads to.
mod looks {
    use super::*;

    fn watched(directory: &tempfile::TempDir) -> Watched {
        let path = directory.path().join("config.conf").display().to_string();
        let flags = Flags { config: Some(path.clone()), ..Flags::default() };
        Watched { path, flags, seen: None, missing: None }
    }

    #[test]
    fn a_file_that_is_missing_for_a_moment_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = watched(&directory);
        let start = SystemClock.now();
        assert_eq!(file.look(start), Look::Later(MISSING));
        assert_eq!(file.look(start + MISSING / 4), Look::Later(MISSING * 3 / 4));
        // Cut off, before it is written: somebody is at work.
        fs::write(&file.path, "").unwrap();
        assert_eq!(file.look(start + MISSING / 2), Look::Later(MISSING));
        assert_eq!(file.look(start + MISSING), Look::Later(MISSING / 2));
        fs::write(&file.path, text(1)).unwrap();
        assert!(matches!(file.look(start + MISSING * 2), Look::Report(Reload::Read { .. })));
        assert_eq!(file.look(start + MISSING * 2), Look::Nothing, "the same text");
        // Missing again, it is waited for again.
        fs::remove_file(&file.path).unwrap();
        assert_eq!(file.look(start + MISSING * 3), Look::Later(MISSING));
        assert!(matches!(file.look(start + MISSING * 4), Look::Report(Reload::Refused(_))));
        assert_eq!(file.look(start + MISSING * 5), Look::Nothing, "it is said once");
    }

    #[test]
    fn the_same_wrong_text_is_reported_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = watched(&directory);
        let now = SystemClock.now();
        fs::write(&file.path, text(77)).unwrap();
        assert!(matches!(file.look(now), Look::Report(Reload::Refused(_))));
        assert_eq!(file.look(now), Look::Nothing);
        fs::write(&file.path, text(1)).unwrap();
        assert!(matches!(file.look(now), Look::Report(Reload::Read { .. })), "the refusal is over");
        fs::write(&file.path, text(77)).unwrap();
        assert!(matches!(file.look(now), Look::Report(Reload::Refused(_))), "somebody wrote it anew");
    }
}

#[test]
fn dropping_the_watch_ends_its_thread_at_once_also_while_the_file_is_waited_for() {
    let rig = Rig::new();
    fs::remove_file(rig.path()).unwrap();
    let began = SystemClock.now();
    let Rig { reloads, _watch: watch, .. } = rig;
    drop(watch);
    assert!(began.elapsed() < DEADLINE);
    // The thread held the sender.
    while reloads.try_recv().is_ok() {}
    assert_eq!(reloads.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected));
}
