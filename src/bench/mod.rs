//! `portolan bench`: which mode serves this kernel best, measured.
//!
//! One process plans, repeats and reports ([`run()`]); for each measurement it starts this program anew ([`cell`]), so that memory and
//! processor time are those of one proxy with one number of Services. That process moves into network namespaces without
//! names ([`world`]), programs them with the real engine and the real kernel layer, and ends with them: the node's rules are never
//! touched and there is nothing to clean up.
//!
//! Pure: [`plan`] (what is measured, in which order), [`fleet`] (the cluster), [`stats`], [`report`] (readings become figures), [`table`], [`plot`], [`html`].
//! Effects: [`cell`], [`world`], [`traffic`], [`facts`], [`run()`].

pub mod cell;
pub mod facts;
pub mod fleet;
pub mod html;
pub mod plan;
pub mod plot;
pub mod report;
mod run;
pub mod stats;
pub mod table;
pub mod traffic;
pub mod world;

pub use run::{BenchError, run};
