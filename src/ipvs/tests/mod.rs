mod base;
mod lower;
mod render;
mod view;
