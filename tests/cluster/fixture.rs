//! The PostgreSQL of the tests does what they count on.

use crate::support::postgres::{Postgres, SmallDisk};

#[test]
fn what_was_committed_is_there_after_any_end() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database().name;
    server.sql(&database, "CREATE TABLE numbers (number integer)");
    for end in [Postgres::stop, Postgres::kill] {
        server.sql(&database, "INSERT INTO numbers VALUES (1)");
        end(&server);
        assert!(!server.try_sql(&database, "SELECT 1").status.success());
        server.start_again();
    }
    assert_eq!(server.sql(&database, "SELECT count(*) FROM numbers"), "2");
}

#[test]
fn a_standby_that_is_held_back_and_a_backup_are_earlier_states() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database().name;
    server.sql(&database, "CREATE TABLE numbers (number integer)");
    let standby = server.standby();
    server.sql(&database, "INSERT INTO numbers VALUES (1)");
    server.is_followed_by(&standby);
    let backup = server.back_up();
    standby.hold_back();
    server.sql(&database, "INSERT INTO numbers VALUES (2)");
    let count = |server: &Postgres| server.sql(&database, "SELECT count(*) FROM numbers");
    let identity = |server: &Postgres| {
        let columns = "(SELECT system_identifier FROM pg_control_system()), timeline_id";
        server.sql(&database, &format!("CHECKPOINT; SELECT {columns} FROM pg_control_checkpoint()"))
    };
    assert_eq!(count(&server), "2");
    let before = identity(&server);
    standby.promote();
    assert_eq!(count(&standby), "1");
    assert_ne!(identity(&standby), before);
    server.restore(&backup);
    assert_eq!((count(&server), identity(&server)), ("1".into(), before));
}

#[test]
fn a_full_disk_refuses_what_is_written() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let Some(server) = Postgres::start_in(Some(disk.path()), "") else { return };
    let database = server.new_database().name;
    server.sql(&database, "CREATE TABLE texts (text text)");
    disk.fill();
    let write = "INSERT INTO texts SELECT repeat('x', 1000) FROM generate_series(1, 9000)";
    assert!(!server.try_sql(&database, write).status.success());
    disk.free();
    // It restarts by itself where its log of changes could not be written.
    crate::support::eventually("it goes on", || server.try_sql(&database, write).status.success());
}
