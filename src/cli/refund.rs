//! `tollgate refund`: gives back what a check was charged.

use clap::Args;

use super::client::ClientArgs;
use super::failure::Outcome;
use super::out::{self, Output, Record};
use crate::proto::v1::RefundCheckRequest;

#[derive(Debug, Args)]
pub(super) struct RefundArgs {
    /// The `--operation-id` of the check.
    operation_id: String,
    /// The account of the key that was checked; the caller's own where left out, which an operator can't.
    #[arg(long, default_value = "", hide_default_value = true)]
    account: String,
}

pub(super) async fn run(client: &ClientArgs, args: RefundArgs, output: Output) -> Outcome {
    let RefundArgs { operation_id, account } = args;
    let request = RefundCheckRequest { operation_id, account_id: account };
    let answer = client.connect().await?.keys().refund_check(request).await?.into_inner();
    match output {
        Output::Json => out::message_json("RefundCheckResponse", &answer),
        Output::Table => {
            let mut record = Record::default();
            record.add("refunded", answer.refunded.to_string());
            record.print()
        }
    }
}
