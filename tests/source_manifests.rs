//! Files as a source, in real directories.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use portolan::model::{Change, Cluster, ObjectKind, ServiceName};
use portolan::source::Event;
use portolan::source::manifests::{Watching, load, watch};
use rstest::rstest;
use tempfile::TempDir;

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  creationTimestamp: null
  name: {name}
  namespace: shop
  annotations: null
spec:
  clusterIP: 10.0.0.1
  clusterIPs: [10.0.0.1]
  externalIPs: null
  ipFamilies:
  - IPv4
  ports:
  - name: http
    port: {port}
    protocol: TCP
    targetPort: 8080
  type: ClusterIP
status:
  loadBalancer: {{}}
"
    )
}

fn slice(name: &str, service: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints:
- addresses: [10.1.0.1]
  conditions: {{ready: true}}
  nodeName: n1
"
    )
}

fn dir_with(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// What has been reported.
#[derive(Default)]
struct State {
    cluster: Cluster,
    notes: BTreeMap<(ObjectKind, String), Vec<String>>,
    changes: usize,
}

impl State {
    fn take(&mut self, event: Event) {
        match event {
            Event::Change(change) => {
                self.changes += usize::from(!matches!(change, Change::Complete(_)));
                self.cluster.apply(change);
            }
            Event::Notes { kind, object, notes } if notes.is_empty() => {
                self.notes.remove(&(kind, object)).expect("only what had notes is cleared");
            }
            Event::Notes { kind, object, notes } => {
                self.notes.insert((kind, object), notes.iter().map(ToString::to_string).collect());
            }
            other @ (Event::Heard { .. } | Event::WatchRestarted { .. }) => panic!("unexpected {other:?}"),
        }
    }

    fn services(&self) -> Vec<String> {
        let with_service = self.cluster.entries().filter(|(_, entry)| entry.service.is_some());
        let mut names: Vec<_> = with_service.map(|(name, _)| name.to_string()).collect();
        names.sort();
        names
    }

    fn port_of(&self, name: &str) -> Option<u16> {
        let entry = self.cluster.entry(&ServiceName::new("shop", name))?;
        Some(entry.service.as_ref()?.ports.first()?.port.get())
    }

    fn notes(&self) -> Vec<String> {
        self.notes.values().flatten().cloned().collect()
    }
}

fn loaded(path: &Path) -> State {
    let mut state = State::default();
    load(path, "n1").unwrap().into_iter().for_each(|event| state.take(event));
    assert!(state.cluster.synced());
    state
}

fn loaded_text(name: &str, text: &str) -> State {
    loaded(dir_with(&[(name, text)]).path())
}

/// A watch with everything that it has reported.
struct Source {
    state: State,
    events: Receiver<Event>,
    _watching: Watching,
}

impl Source {
    fn start(path: &Path) -> Source {
        let (sender, events) = channel();
        let watching = watch(path, "n1", sender).unwrap();
        let mut source = Source { state: State::default(), events, _watching: watching };
        source.until("synced", |state| state.cluster.synced());
        source.settle();
        source
    }

    #[track_caller]
    fn until(&mut self, what: &str, holds: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds(&self.state) {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => self.state.take(event),
                Err(_) => panic!("{what}: not within 10 s; {:?} {:?}", self.state.services(), self.state.notes),
            }
        }
    }

    /// Takes the events of a short time and counts them.
    fn settle(&mut self) -> usize {
        let end = Instant::now() + Duration::from_millis(400);
        let mut count = 0;
        while let Ok(event) = self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.state.take(event);
            count += 1;
        }
        count
    }
}

#[test]
fn a_directory_is_read_with_all_that_kubectl_prints() {
    let list = "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: x}\n- ".to_owned()
        + service("a", 1).trim_end().replace('\n', "\n  ").as_str()
        + "\nkind: List\nmetadata:\n  resourceVersion: \"\"\n";
    let json = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[
        {"metadata":{"name":"b","namespace":"shop"},"spec":{"clusterIP":"10.0.0.2","ports":[{"port":2}]}}]}"#;
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}\n";
    let dir = dir_with(&[
        ("list.yaml", &list),
        ("many.yml", &format!("# first\n---\n{}---\n{}--- # last\n{}...\n", service("c", 3), slice("c-1", "c"), node)),
        ("b.json", json),
        ("other.txt", &service("no", 1)),
        (".hidden.yaml", &service("no", 1)),
    ]);
    std::fs::create_dir(dir.path().join("deeper.yaml")).unwrap();
    let state = loaded(dir.path());
    assert_eq!(state.services(), ["shop/a", "shop/b", "shop/c"]);
    assert_eq!(state.notes(), Vec::<String>::new());
    assert_eq!(state.cluster.entry(&ServiceName::new("shop", "c")).unwrap().slices[0].len(), 1);
    assert_eq!(state.cluster.node().zone.as_deref(), Some("z1"));
    assert_eq!(loaded(&dir.path().join("b.json")).services(), ["shop/b"], "a single file");
}

#[test]
fn a_json_file_may_hold_several_objects_and_a_yaml_file_json() {
    let one = |name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}"}},"spec":{{"clusterIP":"10.0.0.1"}}}}"#
        )
    };
    assert_eq!(loaded_text("a.json", &(one("a") + "\n" + &one("b"))).services(), ["default/a", "default/b"]);
    assert_eq!(loaded_text("a.yaml", &one("a")).services(), ["default/a"]);
}

#[rstest]
#[case::another_group("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a, namespace: b}\n")]
#[case::another_kind("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n")]
#[case::another_node("apiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {topology.kubernetes.io/zone: z}}\n")]
#[case::nothing("---\n# nothing\n---\n")]
#[case::null("null\n")]
#[case::no_items("apiVersion: v1\nkind: List\nitems: null\n")]
#[case::headless("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {clusterIP: None}\n")]
#[case::of_another_proxy(
    "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b, labels: \
     {service.kubernetes.io/service-proxy-name: x}}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 1}]}\n"
)]
#[case::headless_slice(
    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, namespace: b, labels: \
     {kubernetes.io/service-name: x, service.kubernetes.io/headless: \"\"}}\naddressType: IPv4\n"
)]
fn what_is_not_for_a_proxy_is_skipped_in_silence(#[case] text: &str) {
    let state = loaded_text("a.yaml", text);
    assert_eq!((state.changes, state.notes()), (0, vec![]));
}

#[rstest]
#[case::syntax("a: [1\n", "document a.yaml#2: cannot be read: line")]
#[case::duplicate_key("a: 1\na: 2\n", "document a.yaml#2: cannot be read: line")]
#[case::no_kind("metadata: {name: x}\n", "document a.yaml#2: not an object with apiVersion and kind; left out")]
#[case::text("just text\n", "document a.yaml#2: not an object with apiVersion and kind; left out")]
#[case::old_slice(
    "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n",
    "document a.yaml#2: an EndpointSlice of discovery.k8s.io/v1beta1 is not supported; left out"
)]
#[case::no_name(
    "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {}}]\n",
    "document a.yaml#2: items[0].metadata.name: Service default/?: there is none; the object is left out"
)]
fn a_bad_document_is_noted_and_the_others_count(#[case] bad: &str, #[case] note: &str) {
    let state = loaded_text("a.yaml", &format!("{}---\n{bad}---\n{}", service("a", 1), service("b", 2)));
    assert_eq!(state.services(), ["shop/a", "shop/b"]);
    let notes = state.notes();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with(note) && !notes[0].contains('\n'), "{notes:?}");
}

#[test]
fn the_line_of_an_error_counts_from_the_beginning_of_the_file() {
    let state = loaded_text("a.yaml", "a: 1\n---\nb: 1\n---\nc: 1\nc: 2\n");
    let notes = state.notes();
    assert!(notes.iter().any(|note| note.starts_with("document a.yaml#3: cannot be read: line 6: ")), "{notes:?}");
}

#[test]
fn a_file_that_is_not_text_is_noted_and_the_others_count() {
    let dir = dir_with(&[("a.yaml", &service("a", 1))]);
    std::fs::write(dir.path().join("b.yaml"), b"\xff\xfe\x00").unwrap();
    std::fs::write(dir.path().join("c.json"), b"{\"a\":").unwrap();
    let state = loaded(dir.path());
    assert_eq!(state.services(), ["shop/a"]);
    let notes = state.notes();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("document b.yaml: cannot be read: it is not UTF-8"), "{notes:?}");
    assert!(notes[1].starts_with("document c.json#1: cannot be read: EOF"), "{notes:?}");
}

#[test]
fn a_file_that_is_too_large_is_noted_and_the_others_count() {
    let dir = dir_with(&[("a.yaml", &service("a", 80)), ("b.yaml", "")]);
    // Mostly a hole, which takes no room on the disk but would in memory.
    std::fs::File::options().write(true).open(dir.path().join("b.yaml")).unwrap().set_len(300 << 20).unwrap();
    let state = loaded(dir.path());
    assert_eq!(state.services(), ["shop/a"]);
    assert!(state.notes()[0].contains("larger than 256 MiB"), "{:?}", state.notes());
}

#[test]
fn of_an_object_that_is_defined_twice_the_last_counts() {
    let dir = dir_with(&[("a.yaml", &service("x", 1)), ("b.yaml", &service("x", 2))]);
    let state = loaded(dir.path());
    assert_eq!(state.port_of("x"), Some(2));
    assert_eq!(state.notes(), ["Service shop/x: defined in a.yaml#1 and again in b.yaml#1; the last one counts"]);
}

#[test]
fn a_bad_field_costs_only_itself() {
    let state = loaded_text("a.yaml", &service("a", 1).replace("10.0.0.1]", "10.0.0.1]\n  sessionAffinity: 5"));
    assert_eq!(state.services(), ["shop/a"]);
    assert_eq!(state.notes(), ["Service shop/a: spec.sessionAffinity: 5 is not a string; ignored"]);
}

#[test]
fn ten_thousand_services_in_one_list_are_no_problem() {
    let items: String = (0..10_000)
        .map(|n| {
            format!(
                "- {{apiVersion: v1, kind: Service, metadata: {{name: s{n}}}, spec: {{clusterIP: 10.0.0.1, \
             ports: [{{name: a, port: 1}}, {{name: b, port: 2}}, {{name: c, port: 3}}, {{name: d, port: 4}}]}}}}\n"
            )
        })
        .collect();
    let state = loaded_text("a.yaml", &format!("apiVersion: v1\nkind: List\nitems:\n{items}"));
    assert_eq!(state.notes(), Vec::<String>::new());
    assert_eq!(state.cluster.len(), 10_000);
}

#[test]
fn nothing_at_the_path_is_an_error() {
    let error = load("/nonexistent/manifests".as_ref(), "n1").unwrap_err().to_string();
    assert!(error.starts_with("cannot read manifests at /nonexistent/manifests: No such file"), "{error}");
    assert!(watch("/nonexistent/manifests".as_ref(), "n1", channel().0).is_err());
}

#[test]
fn files_that_come_change_and_go_are_followed() {
    let dir = dir_with(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 1))]);
    let mut source = Source::start(dir.path());
    assert_eq!(source.state.services(), ["shop/a", "shop/b"]);
    std::fs::write(dir.path().join("c.yaml"), service("c", 1)).unwrap();
    source.until("added", |state| state.services().len() == 3);
    std::fs::write(dir.path().join("a.yaml"), service("a", 9)).unwrap();
    source.until("changed", |state| state.port_of("a") == Some(9));
    std::fs::remove_file(dir.path().join("b.yaml")).unwrap();
    source.until("removed", |state| state.services() == ["shop/a", "shop/c"]);
    assert_eq!(source.state.changes, 5, "only what is different is sent");
    // Nothing is different, and reading the files does not make us read them again.
    std::fs::write(dir.path().join("c.yaml"), service("c", 1)).unwrap();
    assert_eq!(source.settle(), 0);
}

#[test]
fn a_half_written_file_keeps_what_it_contained() {
    let whole = format!("{}---\n{}", service("a", 1), service("b", 1));
    let dir = dir_with(&[("a.yaml", &whole)]);
    let file = dir.path().join("a.yaml");
    let mut source = Source::start(dir.path());
    // Torn in the second document, with a change in the first.
    std::fs::write(&file, format!("{}---\napiVersion: v1\nkind: \"Serv", service("a", 2))).unwrap();
    source.until("first document", |state| state.port_of("a") == Some(2));
    source.until("noted", |state| state.notes.len() == 1);
    assert_eq!(source.state.services(), ["shop/a", "shop/b"]);
    for torn in [&b""[..], b"\xff\xff"] {
        std::fs::write(&file, torn).unwrap();
        source.until("noted", |state| state.notes.contains_key(&(ObjectKind::Document, "a.yaml".to_owned())));
        source.settle();
        assert_eq!(source.state.services(), ["shop/a", "shop/b"]);
        std::fs::write(&file, &whole).unwrap();
        source.until("whole again", |state| state.notes.is_empty());
    }
    std::fs::write(&file, service("a", 1)).unwrap();
    source.until("removed on purpose", |state| state.services() == ["shop/a"]);
}

#[test]
fn a_config_map_volume_is_followed_when_it_is_swapped() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let version = |name: &str, port| {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("a.yaml"), service("a", port)).unwrap();
    };
    version("..1", 1);
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    for path in [dir.path().to_owned(), at("a.yaml")] {
        let mut source = Source::start(&path);
        let before = source.state.port_of("a").unwrap();
        let next = format!("..{}", before + 1);
        version(&next, before + 1);
        symlink(&next, at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        std::fs::remove_dir_all(at(&format!("..{before}"))).unwrap();
        source.until("swapped", |state| state.port_of("a") == Some(before + 1));
    }
}

#[test]
fn a_single_file_that_is_replaced_is_followed_and_one_that_is_gone_stays_in_force() {
    let dir = dir_with(&[("a.yaml", &service("a", 1)), ("b.yaml", &service("b", 1))]);
    let file = dir.path().join("a.yaml");
    let mut source = Source::start(&file);
    assert_eq!(source.state.services(), ["shop/a"]);
    for port in [2, 3] {
        std::fs::write(dir.path().join("new"), service("a", port)).unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        source.until("replaced", |state| state.port_of("a") == Some(port));
    }
    std::fs::remove_file(&file).unwrap();
    source.until("noted", |state| state.notes.len() == 1);
    assert_eq!(source.state.services(), ["shop/a"]);
    std::fs::write(&file, service("a", 4)).unwrap();
    source.until("back", |state| state.port_of("a") == Some(4) && state.notes.is_empty());
}

#[test]
fn a_directory_that_is_replaced_is_followed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("manifests");
    let make = |name: &str, port| {
        std::fs::create_dir(parent.path().join(name)).unwrap();
        std::fs::write(parent.path().join(name).join("a.yaml"), service("a", port)).unwrap();
    };
    make("manifests", 1);
    let mut source = Source::start(&dir);
    std::fs::rename(&dir, parent.path().join("old")).unwrap();
    source.until("noted", |state| state.notes.len() == 1);
    assert_eq!(source.state.services(), ["shop/a"], "what it contained stays in force");
    make("manifests", 2);
    source.until("new directory", |state| state.port_of("a") == Some(2));
    source.settle();
    std::fs::write(dir.join("a.yaml"), service("a", 3)).unwrap();
    source.until("change in it", |state| state.port_of("a") == Some(3));
}

#[test]
fn a_relative_path_is_followed_too() {
    let parent = tempfile::tempdir().unwrap();
    // Only this test depends on the working directory, and each test has a process of its own or does not look.
    std::env::set_current_dir(parent.path()).unwrap();
    std::fs::create_dir("manifests").unwrap();
    std::fs::write("manifests/a.yaml", service("a", 1)).unwrap();
    for path in ["manifests", "manifests/a.yaml"] {
        let mut source = Source::start(path.as_ref());
        let port = source.state.port_of("a").unwrap() + 1;
        std::fs::write("manifests/a.yaml", service("a", port)).unwrap();
        source.until("changed", |state| state.port_of("a") == Some(port));
    }
}

#[test]
fn a_watch_ends_when_it_is_dropped() {
    let dir = dir_with(&[("a.yaml", &service("a", 1))]);
    let Source { events, _watching: watching, .. } = Source::start(dir.path());
    drop(watching);
    assert_eq!(events.recv_timeout(Duration::from_secs(5)), Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
}
