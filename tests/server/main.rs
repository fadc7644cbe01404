//! The serving machinery over real sockets, with a service that does as a test says.
#![cfg(test)]

mod bounds;
mod end;
mod http;
mod spread;
mod support;
mod tls;
