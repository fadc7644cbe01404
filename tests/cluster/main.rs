//! Several replicas on one PostgreSQL: what each of them promises holds for all together, whatever happens to them, to the
//! network between them and to the database.
//!
//! The processes and PostgreSQL are real; the network is a proxy for each replica. Clients write down what they were told, and
//! what was written down is judged afterwards (`checker`).
#![cfg(test)]

#[path = "../support/mod.rs"]
mod support;

mod checker;
mod fixture;
mod history;
mod load;
mod proxy;
mod replicas;

mod full_disk;
mod limits;
mod lost_writes;
mod outages;
mod revisions;
mod revocations;
