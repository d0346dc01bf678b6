//! Kubernetes objects to model values.
