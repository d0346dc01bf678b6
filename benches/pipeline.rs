//! What each stage of the way from objects to the kernel costs, and what one change costs in clusters of different size.
//!
//! Counts come first, since they do not depend on the machine. `PORTOLAN_BENCH_HUGE=1` adds 50000 Services to the stages that know
//! of all of them.

#![allow(missing_docs, reason = "a program, not a library")]

mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use portolan::backend::{Backend, Fragment, RuleComments};
use portolan::compile::{ServicePortPlan, compile_service};
use portolan::iptables::{IptablesBackend, restore_text};
use portolan::kernel::Rule;
use portolan::kernel::fake::FakeKernel;
use portolan::model::convert::{self, Interner, wire};
use portolan::model::{Change, Cluster};
use portolan::net::IpFamily;
use portolan::netlink::genl::Family;
use portolan::netlink::ipvs::{Destination, Ipvs, ServiceKey};
use portolan::sync::Options;
use support::Mode;
use support::allocations::{self, Allocations, Counting};
use support::fleet::{self, Fleet};
use support::null_kernel::NullKernel;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As for the legacy variant: a first sync in few transactions.
const UNLIMITED: usize = usize::MAX;

fn options() -> Options {
    Options { operations_per_transaction: UNLIMITED, ..Options::default() }
}

fn main() {
    let mut sizes = vec![1_000, 10_000];
    if std::env::var_os("PORTOLAN_BENCH_HUGE").is_some() {
        sizes.push(50_000);
    }
    counts(&sizes);
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    one_object(&mut criterion);
    let mut group = criterion.benchmark_group("cluster");
    for size in sizes {
        cluster(&mut group, Fleet::of(size));
    }
    group.finish();
    criterion.final_summary();
}

// === counts ===

fn counts(sizes: &[u32]) {
    println!("What one change of one endpoint costs (median of 21):\n");
    println!("| mode | Services | compiled | transactions | operations | allocations | bytes allocated |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (mode, size) in Mode::BOTH.into_iter().flat_map(|mode| sizes.iter().map(move |size| (mode, size))) {
        let fleet = Fleet::of(*size);
        let mut engine = support::engine_in(mode, NullKernel::default(), options());
        support::fill(&mut engine, fleet);
        support::sync(&mut engine);
        let mut costs: Vec<(Allocations, [u64; 3])> = (0..21)
            .map(|at| {
                let change = fleet.endpoints(at * (size / 21), 1);
                let (report, cost) = allocations::of(|| {
                    engine.apply(change);
                    support::sync(&mut engine)
                });
                (cost, [report.compiled_services as u64, report.transactions, support::operations(&report)])
            })
            .collect();
        costs.sort_unstable();
        let (Allocations { count, bytes }, [compiled, transactions, operations]) = costs[costs.len() / 2];
        println!("| {mode:?} | {size} | {compiled} | {transactions} | {operations} | {count} | {bytes} |");
    }
    println!();
}

// === one object ===

fn one_object(criterion: &mut Criterion) {
    let json = slice_json();
    criterion.bench_function("convert/slice of 5 endpoints from JSON", |bencher| {
        let mut interner = Interner::default();
        bencher.iter(|| {
            let slice: wire::EndpointSlice = serde_json::from_slice(black_box(json.as_bytes())).unwrap();
            convert::slice(&slice, &mut interner)
        });
    });

    let mut cluster = Cluster::default();
    Fleet::of(1).changes().for_each(|change| drop(cluster.apply(change)));
    criterion.bench_function("compile and lower/Service with 5 endpoints", |bencher| {
        bencher.iter(|| {
            let mut fragment = Fragment::default();
            plans(&cluster, 0).iter().for_each(|plan| lower(plan, &mut fragment));
            fragment
        });
    });

    let mut fragment = Fragment::default();
    plans(&cluster, 0).iter().for_each(|plan| lower(plan, &mut fragment));
    let text = restore_text(IpFamily::V4, [&fragment]);
    let specs: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("-A ")?.split_once(' ')).map(|(_, spec)| spec).collect();
    emit(criterion);
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(specs.len() as u64));
    group.bench_function("lines of iptables-save", |bencher| {
        bencher.iter(|| specs.iter().filter(|spec| Rule::parse_with_order(black_box(spec)).is_ok()).count());
    });
    group.finish();
}

/// What one endpoint replaced in IPVS mode sends.
fn emit(criterion: &mut Criterion) {
    let ipvs = Ipvs::new(&Family { id: 30, ..Family::default() });
    let server = ServiceKey::address(6, "172.16.0.1:80".parse().unwrap());
    let real = |address: &str, weight| Destination::new(address.parse().unwrap(), weight);
    let (new, leaving) = (real("10.0.0.2:8080", 1), real("10.0.0.1:8080", 0));
    criterion.bench_function("emit/netlink messages of one endpoint replaced", |bencher| {
        bencher.iter(|| {
            let mut bytes = Vec::new();
            ipvs.new_destination(black_box(&server), &new).write(0, 1, &mut bytes);
            ipvs.set_destination(&server, &leaving).write(0, 2, &mut bytes);
            bytes
        });
    });
}

/// A slice as an API server sends it, with the fields that nobody reads.
fn slice_json() -> String {
    let endpoints: Vec<String> = (1..=5)
        .map(|host| {
            format!(
                r#"{{"addresses":["10.244.1.{host}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},
                "nodeName":"node-{host}","zone":"zone-a","targetRef":{{"kind":"Pod","namespace":"default",
                "name":"web-7c5ddbdf54-{host}","uid":"7b1c6a5e-3f0e-4c55-9a35-7f5ad5c1f7a{host}"}}}}"#
            )
        })
        .collect();
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"web-abcde",
        "generateName":"web-","namespace":"default","uid":"4f7e9f7a-93cf-4d5b-8a38-5a0e4a4f7e11","resourceVersion":"4711",
        "generation":3,"creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"app":"web",
        "endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io",
        "kubernetes.io/service-name":"web"}},"annotations":{{
        "endpoints.kubernetes.io/last-change-trigger-time":"2026-01-01T00:00:01Z"}},
        "ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"web","controller":true,
        "uid":"0d6f1b0c-1c1f-4b06-8a0a-6d2a4a3a7a55"}}],"managedFields":[{{"manager":"kube-controller-manager",
        "operation":"Update","fieldsType":"FieldsV1","fieldsV1":{{"f:addressType":{{}},"f:endpoints":{{}},
        "f:ports":{{}},"f:metadata":{{"f:labels":{{".":{{}},"f:app":{{}}}}}}}}}}]}},"addressType":"IPv4",
        "endpoints":[{}],"ports":[{{"name":"http","port":8080,"protocol":"TCP"}}]}}"#,
        endpoints.join(",")
    )
}

fn plans(cluster: &Cluster, at: u32) -> Vec<ServicePortPlan> {
    let name = fleet::name(at);
    cluster.entry(&name).map(|entry| compile_service(&name, entry, &support::context())).unwrap_or_default()
}

fn lower(plan: &ServicePortPlan, out: &mut Fragment) {
    IptablesBackend::default().lower(plan, &support::context(), RuleComments::Omit, out);
}

// === whole clusters ===

fn cluster(group: &mut BenchmarkGroup<'_, WallTime>, fleet: Fleet) {
    let size = fleet.services;

    group.sample_size(10);
    group.bench_function(BenchmarkId::new("first sync on the fake kernel", size), |bencher| {
        let filled = || {
            let mut engine = support::engine(FakeKernel::default(), options());
            support::fill(&mut engine, fleet);
            engine
        };
        let first_sync = |mut engine| {
            support::sync(&mut engine);
            engine
        };
        bencher.iter_batched(filled, first_sync, BatchSize::PerIteration);
    });
    let mut cluster = Cluster::default();
    fleet.changes().for_each(|change| drop(cluster.apply(change)));
    let mut synced = support::engine(FakeKernel::default(), options());
    support::fill(&mut synced, fleet);
    support::sync(&mut synced);
    group.bench_function(BenchmarkId::new("diff of everything that finds nothing", size), |bencher| {
        bencher.iter(|| {
            synced.request_full();
            support::sync(&mut synced)
        });
    });
    drop(synced);
    group.bench_function(BenchmarkId::new("render as text", size), |bencher| {
        bencher.iter(|| {
            let mut fragment = IptablesBackend::default().base(&support::context());
            (0..size).flat_map(|at| plans(&cluster, at)).for_each(|plan| lower(&plan, &mut fragment));
            restore_text(IpFamily::V4, [&fragment])
        });
    });
    drop(cluster);

    group.sample_size(50);
    for mode in Mode::BOTH {
        one_endpoint(group, fleet, mode);
    }
}

fn one_endpoint(group: &mut BenchmarkGroup<'_, WallTime>, fleet: Fleet, mode: Mode) {
    let size = fleet.services;
    let mut engine = support::engine_in(mode, NullKernel::default(), options());
    support::fill(&mut engine, fleet);
    support::sync(&mut engine);
    // Goes on where warming up ended: a slice that is there already is no change.
    let mut generation = 0_u32;
    group.bench_function(
        BenchmarkId::new(format!("one endpoint replaced, {mode:?}, without a kernel"), size),
        |bencher| {
            let mut next = || -> Change {
                generation += 1;
                // Another Service each time, so that nothing is in the processor's cache.
                fleet.endpoints(generation.wrapping_mul(7919) % size, generation)
            };
            bencher.iter_batched(
                &mut next,
                |change| {
                    engine.apply(change);
                    support::sync(&mut engine)
                },
                BatchSize::SmallInput,
            );
        },
    );
}
