//! `tollgate.v1.AccountService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::AccountId;
use crate::engine::{Caller, Engine, Error};
use crate::proto::v1::{self, account_service_server::AccountService};

use super::Api;
use super::convert;
use super::page::Page;
use super::status::status_from;

/// The service. A clone is a reference count.
#[derive(Clone, Debug)]
pub(super) struct Accounts(pub(super) Arc<Api>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AccountService for Accounts {
    async fn create_account(&self, request: Request<v1::CreateAccountRequest>) -> Answer<v1::Account> {
        let caller = self.0.caller(&request)?;
        let v1::CreateAccountRequest { account } = request.into_inner();
        let fresh = self.0.engine.new_account_id();
        let account = fresh.and_then(|id| convert::account_from(account, id)).map_err(|error| status_from(&error))?;
        let account =
            self.0.run(caller, |engine, caller| async move { engine.create_account(&caller, account).await }).await?;
        Ok(Response::new(convert::account_to(&account)))
    }

    async fn get_account(&self, request: Request<v1::GetAccountRequest>) -> Answer<v1::Account> {
        let caller = self.0.caller(&request)?;
        let id = account_id(&request.get_ref().id)?;
        let account = self.0.run(caller, |engine, caller| async move { engine.account(&caller, &id).await }).await?;
        Ok(Response::new(convert::account_to(&account)))
    }

    async fn list_accounts(&self, request: Request<v1::ListAccountsRequest>) -> Answer<v1::ListAccountsResponse> {
        let caller = self.0.caller(&request)?;
        let v1::ListAccountsRequest { page_size, page_token } = request.into_inner();
        let list = format!("accounts {:?}", caller.own_account());
        let page = Page::asked(&list, &page_token, page_size).map_err(|error| status_from(&error))?;
        let after = page.after(|id| AccountId::parse(id).ok()).map_err(|error| status_from(&error))?;
        let rows_max = page.rows_to_read();
        let accounts = self
            .0
            .run(caller, |engine, caller| async move { engine.accounts(&caller, after.as_ref(), rows_max).await })
            .await?;
        let mut accounts: Vec<_> = accounts.iter().map(convert::account_to).collect();
        let next_page_token = page.cut(&mut accounts, |account| account.id.clone());
        Ok(Response::new(v1::ListAccountsResponse { accounts, next_page_token }))
    }

    async fn update_account(&self, request: Request<v1::UpdateAccountRequest>) -> Answer<v1::Account> {
        let caller = self.0.caller(&request)?;
        let v1::UpdateAccountRequest { account, update_mask } = request.into_inner();
        let account = account.ok_or_else(|| status_from(&Error::invalid("account", "must be set")))?;
        let id = account_id(&account.id)?;
        let etag = Some(account.etag.clone()).filter(|etag| !etag.is_empty());
        let patch = convert::account_patch_from(account, update_mask.as_ref(), id.clone());
        let patch = patch.map_err(|error| status_from(&error))?;
        let call = |engine: Arc<Engine>, caller: Caller| async move {
            engine.update_account(&caller, &id, patch, etag.as_deref()).await
        };
        let account = self.0.run(caller, call).await?;
        Ok(Response::new(convert::account_to(&account)))
    }

    async fn adjust_credits(&self, request: Request<v1::AdjustCreditsRequest>) -> Answer<v1::AdjustCreditsResponse> {
        let caller = self.0.caller(&request)?;
        let (id, adjustment) = convert::adjustment_from(request.into_inner()).map_err(|error| status_from(&error))?;
        let call =
            |engine: Arc<Engine>, caller: Caller| async move { engine.adjust_credits(&caller, &id, &adjustment).await };
        let adjusted = self.0.run(caller, call).await?;
        Ok(Response::new(convert::adjusted_to(&adjusted)))
    }
}

fn account_id(id: &str) -> Result<AccountId, Status> {
    convert::account_id_from("id", id).map_err(|error| status_from(&error))
}
