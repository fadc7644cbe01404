//! `tollgate.v1.KeyService`.

use std::sync::Arc;
use std::time::Duration;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use crate::domain::{AccountId, KeyId, Time};
use crate::engine::{self, Caller, Engine, Error, ImportOutcome, ImportRow, Rehearsal};
use crate::proto::v1::{self, key_service_server::KeyService};
use crate::transport::server::PeerInfo;

use super::Api;
use super::asker::Asker;
use super::convert;
use super::page::Page;
use super::status::status_from;

/// How long a check may wait for `min_revision`.
const REVISION_WAIT: Duration = Duration::from_millis(250);
/// Rows of one commit.
const IMPORT_BATCH_ROWS: usize = 1_000;
/// Rows of one call, because a dry run remembers all of them.
const IMPORT_ROWS_MAX: i64 = 2_000_000;
/// Refused rows that are told one by one.
const IMPORT_ERRORS_MAX: usize = 1_000;

/// The service. A clone is a reference count.
#[derive(Clone, Debug)]
pub(super) struct Keys(pub(super) Arc<Api>);

type Answer<T> = Result<Response<T>, Status>;

impl Keys {
    /// A check, for the generated service and for the short way round it.
    pub(super) async fn answer_check(
        &self,
        request: &Request<v1::CheckKeyRequest>,
    ) -> Result<v1::CheckKeyResponse, Status> {
        let mut now = self.now();
        let asker = self.0.asker(request.metadata(), request.extensions().get::<PeerInfo>(), now)?;
        let request = request.get_ref();
        if request.min_revision != 0 {
            let revision = convert::revision_from(request.min_revision).map_err(|error| status_from(&error))?;
            self.0.engine.await_revision(revision, REVISION_WAIT).await.map_err(|error| status_from(&error))?;
            now = self.now();
        }
        self.check(&asker, request, now).await
    }

    async fn check(
        &self,
        asker: &Asker,
        request: &v1::CheckKeyRequest,
        now: Time,
    ) -> Result<v1::CheckKeyResponse, Status> {
        let api = &*self.0;
        let (check, operation) = convert::check_from(request, asker.within()).map_err(|error| status_from(&error))?;
        let answer = match operation {
            None => api.engine.check(&check, now).await.map_err(|error| status_from(&error))?,
            // In a box, because most checks don't come here.
            Some(_) => Box::pin(self.check_operation(asker.within().cloned(), request.clone(), now)).await?,
        };
        api.metrics.check(answer.verdict);
        let http_status = api.http_statuses.of(answer.verdict);
        Ok(convert::check_to(answer, http_status))
    }

    /// A check that is an operation runs to its end even if its client goes away, as what it has reserved must be charged or
    /// put back.
    async fn check_operation(
        &self,
        within: Option<AccountId>,
        request: v1::CheckKeyRequest,
        now: Time,
    ) -> Result<engine::Answer, Status> {
        let engine = Arc::clone(&self.0.engine);
        let call = async move {
            let (check, operation) = convert::check_from(&request, within.as_ref())?;
            match operation {
                Some(id) => engine.check_operation(&check, &id, now).await,
                None => engine.check(&check, now).await,
            }
        };
        self.0.to_its_end(call).await
    }

    fn now(&self) -> Time {
        self.0.engine.clock().now()
    }
}

#[tonic::async_trait]
impl KeyService for Keys {
    async fn check_key(&self, request: Request<v1::CheckKeyRequest>) -> Answer<v1::CheckKeyResponse> {
        self.answer_check(&request).await.map(Response::new)
    }

    async fn create_key(&self, request: Request<v1::CreateKeyRequest>) -> Answer<v1::CreateKeyResponse> {
        let caller = self.0.caller(&request)?;
        caller.require("tollgate:keys:write").map_err(|error| status_from(&error))?;
        let v1::CreateKeyRequest { key } = request.into_inner();
        let new = convert::new_key_from(key).map_err(|error| status_from(&error))?;
        let made = self.0.run(caller, |engine, caller| async move { engine.create_key(&caller, new).await }).await?;
        Ok(Response::new(convert::created_to(made, self.now())))
    }

    async fn get_key(&self, request: Request<v1::GetKeyRequest>) -> Answer<v1::Key> {
        let caller = self.0.caller(&request)?;
        let id = key_id(&request.get_ref().id)?;
        let view = self.0.run(caller, |engine, caller| async move { engine.key(&caller, id).await }).await?;
        Ok(Response::new(convert::key_view_to(&view, self.now())))
    }

    async fn list_keys(&self, request: Request<v1::ListKeysRequest>) -> Answer<v1::ListKeysResponse> {
        let caller = self.0.caller(&request)?;
        let v1::ListKeysRequest { account_id, filter, page_size, page_token } = request.into_inner();
        let list = format!("keys {:?} {account_id} {filter:?}", caller.own_account());
        let page = Page::asked(&list, &page_token, page_size).map_err(|error| status_from(&error))?;
        let filter = convert::filter_from(&account_id, filter).map_err(|error| status_from(&error))?;
        let after = page.after(KeyId::parse).map_err(|error| status_from(&error))?;
        let rows_max = page.rows_to_read();
        let keys = self
            .0
            .run(caller, |engine, caller| async move { engine.keys(&caller, filter, after, rows_max).await })
            .await?;
        let now = self.now();
        let mut keys: Vec<_> = keys.iter().map(|stored| convert::key_to(stored, now)).collect();
        let next_page_token = page.cut(&mut keys, |key| key.id.clone());
        Ok(Response::new(v1::ListKeysResponse { keys, next_page_token }))
    }

    async fn update_key(&self, request: Request<v1::UpdateKeyRequest>) -> Answer<v1::Key> {
        let caller = self.0.caller(&request)?;
        caller.require("tollgate:keys:write").map_err(|error| status_from(&error))?;
        let v1::UpdateKeyRequest { key, update_mask } = request.into_inner();
        let key = key.ok_or_else(|| status_from(&Error::invalid("key", "must be set")))?;
        let id = key_id(&key.id)?;
        let etag = Some(key.etag.clone()).filter(|etag| !etag.is_empty());
        let patch = convert::key_patch_from(&key, update_mask.as_ref()).map_err(|error| status_from(&error))?;
        let call = |engine: Arc<Engine>, caller: Caller| async move {
            engine.update_key(&caller, id, patch, etag.as_deref()).await
        };
        let stored = self.0.run(caller, call).await?;
        Ok(Response::new(convert::key_to(&stored, self.now())))
    }

    async fn rotate_key(&self, request: Request<v1::RotateKeyRequest>) -> Answer<v1::RotateKeyResponse> {
        let caller = self.0.caller(&request)?;
        let v1::RotateKeyRequest { id, grace_period, etag } = request.into_inner();
        let id = key_id(&id)?;
        let grace_millis = convert::grace_from(grace_period.as_ref()).map_err(|error| status_from(&error))?;
        let etag = Some(etag).filter(|etag| !etag.is_empty());
        let call = |engine: Arc<Engine>, caller: Caller| async move {
            engine.rotate_key(&caller, id, grace_millis, etag.as_deref()).await
        };
        let made = self.0.run(caller, call).await?;
        let v1::CreateKeyResponse { key, secret, revision } = convert::created_to(made, self.now());
        Ok(Response::new(v1::RotateKeyResponse { key, secret, revision }))
    }

    async fn revoke_key(&self, request: Request<v1::RevokeKeyRequest>) -> Answer<v1::RevokeKeyResponse> {
        let caller = self.0.caller(&request)?;
        let v1::RevokeKeyRequest { id, reason } = request.into_inner();
        let id = key_id(&id)?;
        let reason = convert::reason_from(&reason).map_err(|error| status_from(&error))?;
        let revoked =
            self.0.run(caller, |engine, caller| async move { engine.revoke_key(&caller, id, &reason).await }).await?;
        let key = Some(convert::key_to(&revoked.stored, self.now()));
        Ok(Response::new(v1::RevokeKeyResponse { key, revision: revoked.revision.number() }))
    }

    async fn get_usage(&self, request: Request<v1::GetUsageRequest>) -> Answer<v1::GetUsageResponse> {
        let caller = self.0.caller(&request)?;
        let asked = convert::usage_from(request.into_inner()).map_err(|error| status_from(&error))?;
        let call = |engine: Arc<Engine>, caller: Caller| async move {
            engine.usage(&caller, asked.of, asked.granularity, asked.time, asked.by_key).await
        };
        let report = self.0.run(caller, call).await?;
        Ok(Response::new(convert::usage_to(&report)))
    }

    async fn get_self(&self, request: Request<v1::GetSelfRequest>) -> Answer<v1::GetSelfResponse> {
        let caller = self.0.caller(&request)?;
        let view = self.0.run(caller, |engine, caller| async move { engine.own_key(&caller).await }).await?;
        Ok(Response::new(convert::self_to(&view, self.now())))
    }

    async fn get_limits(&self, request: Request<v1::GetLimitsRequest>) -> Answer<v1::GetLimitsResponse> {
        let caller = self.0.caller(&request)?;
        let id = match request.get_ref().id.as_str() {
            "" => None,
            id => Some(key_id(id)?),
        };
        let budgets = self.0.run(caller, |engine, caller| async move { engine.budgets(&caller, id).await }).await?;
        Ok(Response::new(convert::limits_to(&budgets)))
    }

    async fn refund_check(&self, request: Request<v1::RefundCheckRequest>) -> Answer<v1::RefundCheckResponse> {
        let caller = self.0.caller(&request)?;
        caller.require("tollgate:check").map_err(|error| status_from(&error))?;
        let (account_id, id) = convert::refund_from(request.get_ref()).map_err(|error| status_from(&error))?;
        let call = |engine: Arc<Engine>, caller: Caller| async move {
            engine.refund_check(&caller, account_id.as_ref(), &id).await
        };
        let units = self.0.run(caller, call).await?;
        Ok(Response::new(convert::refund_to(units)))
    }

    async fn import_keys(&self, request: Request<Streaming<v1::ImportKeysRequest>>) -> Answer<v1::ImportKeysResponse> {
        let caller = self.0.caller(&request)?;
        caller.require("tollgate:keys:write").map_err(|error| status_from(&error))?;
        let mut import = Import {
            api: &self.0,
            caller,
            rehearsal: None,
            row: 0,
            batch: Vec::new(),
            done: v1::ImportKeysResponse::default(),
        };
        let mut messages = request.into_inner();
        let mut first = true;
        while let Some(message) = messages.next().await {
            let v1::ImportKeysRequest { dry_run, key } = message?;
            if first && dry_run {
                import.rehearsal = Some(Rehearsal::default());
            }
            if !(first && key.is_none()) {
                import.add(key.unwrap_or_default()).await?;
            }
            first = false;
        }
        import.flush().await?;
        Ok(Response::new(import.done))
    }
}

fn key_id(id: &str) -> Result<KeyId, Status> {
    convert::key_id_from(id).map_err(|error| status_from(&error))
}

/// An import under way.
struct Import<'a> {
    api: &'a Arc<Api>,
    caller: Caller,
    /// What would have been done so far, in a dry run.
    rehearsal: Option<Rehearsal>,
    row: i64,
    batch: Vec<(i64, ImportRow)>,
    done: v1::ImportKeysResponse,
}

impl Import<'_> {
    async fn add(&mut self, key: v1::ImportedKey) -> Result<(), Status> {
        let row = self.row;
        if row >= IMPORT_ROWS_MAX {
            return Err(status_from(&Error::invalid("key", format!("one call takes at most {IMPORT_ROWS_MAX} rows"))));
        }
        self.row += 1;
        match convert::import_row_from(key) {
            Ok(parsed) => self.batch.push((row, parsed)),
            Err(error) => self.refuse(row, &error),
        }
        if self.batch.len() >= IMPORT_BATCH_ROWS { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Status> {
        let (places, rows): (Vec<i64>, Vec<ImportRow>) = std::mem::take(&mut self.batch).into_iter().unzip();
        if rows.is_empty() {
            return Ok(());
        }
        let mut rehearsal = self.rehearsal.take();
        let call = |engine: Arc<Engine>, caller: Caller| async move {
            let outcomes = engine.import_keys(&caller, rows, rehearsal.as_mut()).await?;
            Ok((outcomes, rehearsal, engine.index_size().2))
        };
        let (outcomes, rehearsal, revision) = self.api.run(self.caller.clone(), call).await?;
        self.rehearsal = rehearsal;
        for (row, outcome) in places.into_iter().zip(outcomes) {
            match outcome {
                ImportOutcome::Imported => {
                    self.done.imported += 1;
                    self.done.revision = if self.rehearsal.is_some() { 0 } else { revision.number() };
                }
                ImportOutcome::AlreadyPresent => self.done.already_present += 1,
                ImportOutcome::Refused(error) => self.refuse(row, &error),
            }
        }
        Ok(())
    }

    fn refuse(&mut self, row: i64, error: &Error) {
        self.done.failed += 1;
        if self.done.errors.len() >= IMPORT_ERRORS_MAX {
            return;
        }
        let (field, message) = if let Error::Invalid(violations) = error
            && let Some(first) = violations.first()
        {
            (first.field.clone(), first.message.clone())
        } else {
            (String::new(), error.to_string())
        };
        self.done.errors.push(v1::ImportError { row, field, message });
    }
}
