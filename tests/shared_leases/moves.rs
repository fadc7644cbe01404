//! The database goes back to an earlier state, at moments at which no test from outside could have it do so.

use tollgate::engine::Error;

use super::*;
use crate::support::eventually;

/// The identity of the database that was written last is another.
const MOVE: &str = "UPDATE sequence SET lineage = 'another/00000001'";

/// The next commit is made and answered; and before anybody else looks, the database is what it was before it.
const LOSE_NEXT_COMMIT: &str = "
CREATE TABLE earlier AS SELECT id, status, revision, policy FROM keys;
CREATE TABLE armed AS SELECT 1;
CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  DELETE FROM armed;
  IF FOUND THEN
    UPDATE keys AS k SET status = e.status, revision = e.revision, policy = e.policy FROM earlier AS e WHERE e.id = k.id;
    DELETE FROM changes WHERE revision = NEW.revision;
    DELETE FROM commits WHERE revision = NEW.revision;
    UPDATE sequence SET revision = NEW.revision - 1, lineage = 'another/00000001';
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON commits DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION lose()";

async fn on_postgres() -> Option<World> {
    World::on(On::Postgres, vec![limit(100, Period::Day)], None, 0).await
}

impl World {
    fn sql(&self, statements: &str) -> String {
        let Shared::Postgres(postgres) = &self.shared else { panic!("it is in memory") };
        let (server, database) = &**postgres;
        server.sql(&database.name, statements)
    }

    fn is_settled(&self, processes: &[&Process]) {
        let settled = "SELECT moving IS NULL AND lineage NOT LIKE 'another%' FROM sequence";
        eventually("the move has ended", || self.sql(settled) == "t");
        eventually("all admit again", || processes.iter().all(|process| process.engine.is_fresh()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_revision_of_another_history_acknowledges_nothing() {
    let Some(world) = on_postgres().await else { return };
    let [first, second] = world.start_all().await;
    world.sql(LOSE_NEXT_COMMIT);
    let revoke = || world.pass_until(first.engine.revoke_key(&Caller::System, world.key, "test"));
    let (lost, _) = revoke().await;
    assert!(matches!(lost, Err(Error::Unavailable(_))), "{lost:?}");
    world.is_settled(&[&first, &second]);
    assert_eq!(second.verdict(1).await, Verdict::Allowed, "it was lost");
    revoke().await.0.unwrap();
    assert_eq!((first.verdict(1).await, second.verdict(1).await), (Verdict::Revoked, Verdict::Revoked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_secret_that_was_replaced_is_of_no_use_again() {
    let Some(world) = on_postgres().await else { return };
    let [mut first, second] = world.start_all().await;
    world.sql("CREATE TABLE earlier AS SELECT * FROM keys");
    let rotation = first.engine.rotate_key(&Caller::System, world.key, 0, None);
    let rotated = world.pass_until(rotation).await.0.unwrap();
    // Not as a user does, but as a backup: references between tables are as they were.
    let go_back = "SET session_replication_role = replica; DELETE FROM keys; INSERT INTO keys SELECT * FROM earlier;
                   DELETE FROM retired_secrets";
    world.sql(&format!("{go_back}; {MOVE}"));
    world.is_settled(&[&first, &second]);
    first.secret = rotated.secret.expose_secret().to_owned();
    assert_eq!(second.verdict(1).await, Verdict::Disabled, "the old one, which may have leaked");
    assert_eq!(first.verdict(1).await, Verdict::Unknown, "the one of which the database does not know");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_known_at_one_move_is_not_told_at_the_next() {
    let Some(world) = on_postgres().await else { return };
    let [mut first, mut second] = world.start_all().await;
    assert_eq!(first.check_at_once(10, 1).await, 10);
    // The first says what it knows, and does not see how the second ends the move.
    second.fall_deaf().await;
    world.sql(MOVE);
    eventually("one has restated", || world.sql("SELECT count(*) FROM replicas WHERE restated IS NOT NULL") == "1");
    first.fall_deaf().await;
    second.follow();
    world.is_settled(&[&second]);
    first.follow();
    world.is_settled(&[&first]);

    world.sql("CREATE TABLE earlier AS SELECT * FROM budgets");
    assert_eq!(first.check_at_once(40, 1).await, 40);
    let go_back = "UPDATE budgets AS b SET state = e.state FROM earlier AS e WHERE e.id = b.id; DELETE FROM leases";
    world.sql(&format!("{go_back}; {MOVE}"));
    world.is_settled(&[&first, &second]);
    let more = first.check_at_once(100, 1).await + second.check_at_once(100, 1).await;
    assert!(10 + 40 + more <= 100, "{more} more were admitted of 100 that 50 were admitted of");
}

/// It is busy telling what it knows, and nobody else knows that.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_takes_long_to_tell_is_waited_for() {
    let Some(world) = on_postgres().await else { return };
    let [first, second] = world.start_all().await;
    assert_eq!(first.check_at_once(10, 1).await, 10);
    let is_moving = "SELECT moving IS NOT NULL FROM sequence";
    let locked =
        "SELECT count(*) FROM pg_locks WHERE relation = 'budgets'::regclass AND mode = 'ExclusiveLock' AND granted";
    // Longer than one who is silent is waited for.
    let hold = format!("LOCK TABLE budgets IN EXCLUSIVE MODE; SELECT pg_sleep(13); {is_moving}");
    let still_moving = std::thread::scope(|scope| {
        let holding = scope.spawn(|| world.sql(&hold));
        eventually("it is locked", || world.sql(locked) == "1");
        world.sql(MOVE);
        eventually("the second has nothing to tell", || {
            world.sql("SELECT count(*) FROM replicas WHERE restated IS NOT NULL") == "1"
        });
        world.sql("UPDATE replicas SET fence_millis = 1000");
        world.hands.advance(Duration::from_secs(13));
        holding.join().unwrap()
    });
    assert!(still_moving.ends_with('t'), "{still_moving}");
    world.is_settled(&[&first, &second]);
}
