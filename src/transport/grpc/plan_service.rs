//! `tollgate.v1.PlanService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::PlanId;
use crate::engine::{Caller, Engine, Error};
use crate::proto::v1::{self, plan_service_server::PlanService};

use super::Api;
use super::convert;
use super::page::Page;
use super::status::status_from;

/// The service. A clone is a reference count.
#[derive(Clone, Debug)]
pub(super) struct Plans(pub(super) Arc<Api>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl PlanService for Plans {
    async fn create_plan(&self, request: Request<v1::CreatePlanRequest>) -> Answer<v1::Plan> {
        let caller = self.0.caller(&request)?;
        let v1::CreatePlanRequest { plan } = request.into_inner();
        let plan = convert::plan_from(plan).map_err(|error| status_from(&error))?;
        let plan = self.0.run(caller, |engine, caller| async move { engine.create_plan(&caller, plan).await }).await?;
        Ok(Response::new(convert::plan_to(&plan)))
    }

    async fn get_plan(&self, request: Request<v1::GetPlanRequest>) -> Answer<v1::Plan> {
        let caller = self.0.caller(&request)?;
        let id = plan_id(&request.get_ref().id)?;
        let plan = self.0.run(caller, |engine, caller| async move { engine.plan(&caller, &id).await }).await?;
        Ok(Response::new(convert::plan_to(&plan)))
    }

    async fn list_plans(&self, request: Request<v1::ListPlansRequest>) -> Answer<v1::ListPlansResponse> {
        let caller = self.0.caller(&request)?;
        let v1::ListPlansRequest { page_size, page_token } = request.into_inner();
        let list = format!("plans {:?}", caller.own_account());
        let page = Page::asked(&list, &page_token, page_size).map_err(|error| status_from(&error))?;
        let after = page.after(|id| PlanId::parse(id).ok()).map_err(|error| status_from(&error))?;
        let rows_max = page.rows_to_read();
        let plans = self
            .0
            .run(caller, |engine, caller| async move { engine.plans(&caller, after.as_ref(), rows_max).await })
            .await?;
        let mut plans: Vec<_> = plans.iter().map(convert::plan_to).collect();
        let next_page_token = page.cut(&mut plans, |plan| plan.id.clone());
        Ok(Response::new(v1::ListPlansResponse { plans, next_page_token }))
    }

    async fn update_plan(&self, request: Request<v1::UpdatePlanRequest>) -> Answer<v1::Plan> {
        let caller = self.0.caller(&request)?;
        let v1::UpdatePlanRequest { plan, update_mask } = request.into_inner();
        let plan = plan.ok_or_else(|| status_from(&Error::invalid("plan", "must be set")))?;
        let id = plan_id(&plan.id)?;
        let etag = Some(plan.etag.clone()).filter(|etag| !etag.is_empty());
        let patch = convert::plan_patch_from(plan, update_mask.as_ref(), id.clone());
        let patch = patch.map_err(|error| status_from(&error))?;
        let call = |engine: Arc<Engine>, caller: Caller| async move {
            engine.update_plan(&caller, &id, patch, etag.as_deref()).await
        };
        let plan = self.0.run(caller, call).await?;
        Ok(Response::new(convert::plan_to(&plan)))
    }

    async fn delete_plan(&self, request: Request<v1::DeletePlanRequest>) -> Answer<v1::DeletePlanResponse> {
        let caller = self.0.caller(&request)?;
        let v1::DeletePlanRequest { id, etag } = request.into_inner();
        let id = plan_id(&id)?;
        let etag = Some(etag).filter(|etag| !etag.is_empty());
        self.0
            .run(caller, |engine, caller| async move { engine.delete_plan(&caller, &id, etag.as_deref()).await })
            .await?;
        Ok(Response::new(v1::DeletePlanResponse {}))
    }
}

fn plan_id(id: &str) -> Result<PlanId, Status> {
    convert::plan_id_from("id", id).map_err(|error| status_from(&error))
}
