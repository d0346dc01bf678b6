//! Real packets through the rules that the program makes, in network namespaces of this process's own.

#[path = "support/netns/mod.rs"]
mod netns;

mod traffic {
    mod check;
    mod cluster;
    mod endpoints;
    mod lab;
    mod lifecycle;
    mod manifest;
    mod matrix;
    mod program;
    mod rolling;
    mod services;
    mod table;
}
