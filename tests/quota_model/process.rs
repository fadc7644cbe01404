//! An engine, and what it runs on.

use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tollgate::ambient::Clock;
use tollgate::engine::{Engine, Options};
use tollgate::store::SharedStore;
use tollgate::store::sqlite::{OpenMode, SqliteStore};

use crate::store::{Desk, TroubledStore};

pub(crate) struct Process {
    pub(crate) engine: Arc<Engine>,
    store: SharedStore,
    desk: Arc<Desk>,
    stop: CancellationToken,
    leasing: JoinHandle<()>,
}

impl Process {
    /// Begins. Absent where a call that it begins with goes wrong: it is gone again then.
    pub(crate) async fn start(folder: &Path, clock: &Clock, desk: &Arc<Desk>, journal: bool) -> Option<Self> {
        let inner: SharedStore = Arc::new(SqliteStore::open(&folder.join("db"), OpenMode::Create).await.unwrap());
        let store: SharedStore = Arc::new(TroubledStore { inner, desk: Arc::clone(desk) });
        desk.book().dead = false;
        let options = Options { journal: journal.then(|| folder.join("spent")), ..Options::default() };
        let engine = Arc::new(Engine::new(Arc::clone(&store), clock.clone(), options));
        if engine.load().await.is_err() {
            store.close().await;
            return None;
        }
        assert_eq!(engine.lease_stats().is_journal_on, journal);
        let stop = CancellationToken::new();
        let leasing = tokio::spawn({
            let (engine, stop) = (Arc::clone(&engine), stop.clone());
            async move { engine.serve_leases(stop.cancelled()).await }
        });
        Some(Self { engine, store, desk: Arc::clone(desk), stop, leasing })
    }

    /// Ends in order. False where the process was gone before that, or could not say all that it had to.
    pub(crate) async fn end(self) -> bool {
        self.stop.cancel();
        self.leasing.await.unwrap();
        let returned = self.engine.return_leases().await.is_ok();
        // Of what fails once, the second time is to succeed.
        let flushed = self.engine.flush_usage().await.is_ok() || self.engine.flush_usage().await.is_ok();
        self.store.close().await;
        let orderly = returned && flushed && !self.desk.book().dead;
        self.desk.book().dead = true;
        assert_eq!(Arc::strong_count(&self.engine), 1, "the journal is let go of");
        orderly
    }

    /// Is gone.
    pub(crate) async fn crash(self) {
        let gate = self.desk.gate.lock().await;
        self.desk.book().dead = true;
        self.leasing.abort();
        drop(gate);
        _ = self.leasing.await;
        self.store.close().await;
        assert_eq!(Arc::strong_count(&self.engine), 1, "the journal is let go of");
    }
}
