//! Which events are new, and which repeat an earlier one.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use super::{ClusterEvent, EventKind, Regarding};

/// A series ends when its event has not come again for this long (client-go's time).
const FINISHED_AFTER: Duration = Duration::from_secs(6 * 60);
/// The count of a series that goes on is told this often (client-go's time).
const TOLD_EVERY: Duration = Duration::from_secs(30 * 60);
/// Events that are remembered; further ones are created each time.
const REMEMBERED: usize = 1024;
/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// What is to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Post {
    /// A new event.
    Create(Box<Event>),
    /// The series of an event that has been created.
    Patch(Box<Event>),
}

impl Post {
    /// The whole event.
    pub(super) fn event(&self) -> &Event {
        match self {
            Post::Create(event) | Post::Patch(event) => event,
        }
    }
}

#[derive(Debug)]
struct Known {
    event: Event,
    last: Instant,
    told: Instant,
    told_count: i32,
}

/// The events of the last minutes.
#[derive(Debug)]
pub(super) struct Series {
    controller: &'static str,
    instance: String,
    known: HashMap<ClusterEvent, Known>,
}

impl Series {
    /// No events yet; those to come are reported by this controller and instance.
    pub(super) fn new(controller: &'static str, instance: String) -> Series {
        Series { controller, instance, known: HashMap::new() }
    }

    /// Takes an event, and says what to send for it; `None`: it is counted only.
    pub(super) fn record(&mut self, what: ClusterEvent, now: Instant, wall: SystemTime) -> Option<Post> {
        let time = MicroTime(Timestamp::try_from(wall).unwrap_or_default());
        if let Some(known) = self.known.get_mut(&what) {
            known.last = now;
            if let Some(series) = &mut known.event.series {
                series.count = series.count.saturating_add(1);
                series.last_observed_time = time;
                return None;
            }
            known.event.series = Some(EventSeries { count: 2, last_observed_time: time });
            (known.told, known.told_count) = (now, 2);
            return Some(Post::Patch(Box::new(known.event.clone())));
        }
        let event = self.event(&what, time, wall);
        if self.known.len() < REMEMBERED {
            self.known.insert(what, Known { event: event.clone(), last: now, told: now, told_count: 1 });
        }
        Some(Post::Create(Box::new(event)))
    }

    /// Forgets what has ended, and says which counts are to be told.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Post> {
        let mut posts = Vec::new();
        self.known.retain(|_, known| {
            let finished = now.saturating_duration_since(known.last) >= FINISHED_AFTER;
            let count = known.event.series.as_ref().map_or(1, |series| series.count);
            let due = finished || now.saturating_duration_since(known.told) >= TOLD_EVERY;
            if due && count > known.told_count {
                posts.push(Post::Patch(Box::new(known.event.clone())));
                (known.told, known.told_count) = (now, count);
            }
            !finished
        });
        posts
    }

    fn event(&self, what: &ClusterEvent, time: MicroTime, wall: SystemTime) -> Event {
        let (api_version, kind, namespace, name) = match &what.regarding {
            Regarding::Node(name) => ("v1", "Node", None, name.to_string()),
            Regarding::Service(name) => ("v1", "Service", Some(name.namespace.to_string()), name.name.to_string()),
        };
        // Nanoseconds since 1970, as client-go makes names.
        let nanos = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let kind_text = match what.kind {
            EventKind::Normal => "Normal",
            EventKind::Warning => "Warning",
        };
        let mut end = what.note.len().min(MAX_NOTE);
        while !what.note.is_char_boundary(end) {
            end -= 1;
        }
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{nanos:x}")),
                namespace: Some(namespace.clone().unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            event_time: Some(time),
            reporting_controller: Some(self.controller.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            action: Some(what.action.to_owned()),
            reason: Some(what.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(api_version.to_owned()),
                kind: Some(kind.to_owned()),
                name: Some(name),
                namespace,
                ..ObjectReference::default()
            }),
            note: Some(what.note.get(..end).unwrap_or_default().to_owned()),
            type_: Some(kind_text.to_owned()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceName;

    fn series() -> Series {
        Series::new("kube-proxy", "kube-proxy-host".to_owned())
    }

    fn count(post: &Post) -> Option<i32> {
        post.event().series.as_ref().map(|series| series.count)
    }

    #[test]
    fn an_event_has_the_fields_of_kube_proxys() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let post = series().record(ClusterEvent::starting("n1"), Instant::now(), wall).unwrap();
        assert!(matches!(post, Post::Create(_)));
        let json = serde_json::to_value(post.event()).unwrap();
        let expected = serde_json::json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "n1.1797933f1cd8a280", "namespace": "default"},
            "eventTime": "2023-11-14T22:13:20.250000Z", "reportingController": "kube-proxy",
            "reportingInstance": "kube-proxy-host", "action": "StartKubeProxy", "reason": "Starting",
            "regarding": {"apiVersion": "v1", "kind": "Node", "name": "n1"}, "note": "", "type": "Normal"
        });
        let name = format!("n1.{:x}", 1_700_000_000_250_000_000_u64);
        let mut expected = expected;
        expected["metadata"]["name"] = serde_json::json!(name);
        assert_eq!(json, expected);
    }

    #[test]
    fn an_event_about_a_service_is_in_its_namespace_and_its_note_is_cut() {
        let event = ClusterEvent::failed_service_healthcheck(ServiceName::new("shop", "web"), "ä".repeat(600));
        let post = series().record(event, Instant::now(), SystemTime::now()).unwrap();
        assert_eq!(post.event().metadata.namespace.as_deref(), Some("shop"));
        let regarding = post.event().regarding.as_ref().unwrap();
        assert_eq!((regarding.namespace.as_deref(), regarding.kind.as_deref()), (Some("shop"), Some("Service")));
        assert_eq!(post.event().note.as_ref().unwrap().len(), 1024);
    }

    #[test]
    fn repeats_become_a_series_whose_count_is_told_when_it_ends() {
        let (mut series, start) = (series(), Instant::now());
        let record = |series: &mut Series, after: u64| {
            let now = start + Duration::from_secs(after);
            series.record(ClusterEvent::starting("n1"), now, SystemTime::now())
        };
        let first = record(&mut series, 0).unwrap();
        let second = record(&mut series, 5).unwrap();
        assert!(matches!(second, Post::Patch(_)));
        assert_eq!((count(&first), count(&second)), (None, Some(2)));
        assert_eq!(first.event().metadata.name, second.event().metadata.name);
        assert_eq!(record(&mut series, 10), None);
        assert_eq!(series.tick(start + Duration::from_secs(60)), []);
        let told = series.tick(start + Duration::from_secs(371));
        assert_eq!(told.iter().map(count).collect::<Vec<_>>(), [Some(3)]);
        assert!(matches!(record(&mut series, 372), Some(Post::Create(_))), "a new one begins");
    }

    #[test]
    fn a_series_that_goes_on_is_told_every_half_hour() {
        let (mut series, start) = (series(), Instant::now());
        let mut told = Vec::new();
        for minute in 0..65 {
            let now = start + Duration::from_secs(minute * 60);
            series.record(ClusterEvent::starting("n1"), now, SystemTime::now());
            told.extend(series.tick(now).iter().map(count));
        }
        assert_eq!(told, [Some(32), Some(62)]);
    }

    #[test]
    fn many_different_events_do_not_fill_the_memory() {
        let mut series = series();
        for number in 0..REMEMBERED * 2 {
            let event = ClusterEvent::invalid_configuration("n1", number.to_string());
            assert!(series.record(event, Instant::now(), SystemTime::now()).is_some());
        }
        assert_eq!(series.known.len(), REMEMBERED);
    }
}
