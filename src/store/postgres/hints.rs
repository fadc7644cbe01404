//! Hints that a poll would tell something: what is notified on the channel `tollgate`.
//!
//! A connection of its own listens. What is notified while that is broken is lost, so each new one begins with a hint.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::ambient::random;

const CHANNEL: &str = "tollgate";
/// Between attempts to connect: from the first to the last, doubling, and up to half of it more at random.
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);
/// For how long a connection is listened to without a word.
const SILENCE_MAX: Duration = Duration::from_mins(5);

/// Listens from the first time that somebody waits, until it is closed.
#[derive(Debug)]
pub(super) struct Hints {
    come: Arc<Notify>,
    task: Mutex<Task>,
}

#[derive(Debug)]
enum Task {
    Waiting,
    Running(JoinHandle<()>),
    Closed,
}

impl Hints {
    pub(super) fn new() -> Self {
        Self { come: Arc::new(Notify::new()), task: Mutex::new(Task::Waiting) }
    }

    /// Waits for the next, or for one that came while nobody waited. `connect` tells with what to connect now.
    pub(super) async fn next(&self, connect: impl Fn() -> PgConnectOptions + Send + Sync + 'static, limit: Duration) {
        {
            let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(*task, Task::Waiting) {
                *task = Task::Running(tokio::spawn(listen(connect, limit, Arc::clone(&self.come))));
            }
        }
        self.come.notified().await;
    }

    pub(super) fn close(&self) {
        let task = std::mem::replace(&mut *self.task.lock().unwrap_or_else(PoisonError::into_inner), Task::Closed);
        if let Task::Running(task) = task {
            task.abort();
        }
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.close();
    }
}

async fn listen(connect: impl Fn() -> PgConnectOptions, limit: Duration, come: Arc<Notify>) {
    let mut wait = WAIT_MIN;
    loop {
        match tokio::time::timeout(limit, begin(connect())).await {
            Ok(Ok(mut listener)) => {
                wait = WAIT_MIN;
                come.notify_one();
                // A connection that the network has dropped is never missed by one who only listens: after a long silence, another.
                while let Ok(Ok(Some(_))) = tokio::time::timeout(SILENCE_MAX, listener.try_recv()).await {
                    come.notify_one();
                }
            }
            // Polls say what is wrong with the database, and go on at their own pace.
            Ok(Err(error)) => tracing::debug!(%error, "hints of changes cannot be listened for"),
            Err(_) => tracing::debug!("hints of changes cannot be listened for: no connection in time"),
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}

/// A pool of one: the listener asks it for a connection, and is ended with it where that breaks.
async fn begin(connect: PgConnectOptions) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None).connect_lazy_with(connect);
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.ignore_pool_close_event(true);
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Processes that lost the server together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness they do.
    if random::fill(&mut byte).is_err() {
        return wait;
    }
    wait + wait * u32::from(byte[0]) / 512
}
