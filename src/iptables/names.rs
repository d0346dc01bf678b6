//! Chain names.
