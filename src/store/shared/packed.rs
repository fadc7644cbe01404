//! Many rows in one text: fields end with [`FIELD`], rows with [`ROW`]. No column that is packed can hold either: names have no
//! control characters, JSON escapes them, and the rest is words and numbers.

use super::intern::Intern;
use super::rows;
use crate::decision::{Expiry, KeyPhase, KeyRecord};
use crate::domain::{Account, KeyId, Revision, SecretHash, Time};
use crate::store::{Loaded, LoadedKey, RetiredSecret, StoreError};

const FIELD: char = '\u{1f}';
const ROW: char = '\u{1e}';

/// Rows of `id, plan_id, revision, body` of accounts.
pub(in crate::store) fn accounts(text: &str, _: &mut Intern) -> Result<Loaded, StoreError> {
    Ok(Loaded::Accounts(parse_rows(text, account)?))
}

/// Rows of `id, account_id, name, secret_hash, environment, status, expire_time, revision, policy, metadata` of keys, bytes in
/// hexadecimal digits, no expiry as an empty text.
pub(in crate::store) fn keys(text: &str, intern: &mut Intern) -> Result<Loaded, StoreError> {
    Ok(Loaded::Keys(parse_rows(text, |fields| key(fields, intern))?))
}

/// Rows of a retired secret's hash, the hash of its key, and its `expire_time`.
pub(in crate::store) fn retired_secrets(text: &str, _: &mut Intern) -> Result<Loaded, StoreError> {
    Ok(Loaded::RetiredSecrets(parse_rows(text, retired_secret)?))
}

/// The fields of a row, in order.
type Fields<'a> = std::str::Split<'a, char>;

fn parse_rows<T>(
    text: &str,
    mut parse: impl FnMut(&mut Fields<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut parsed = Vec::with_capacity(text.matches(ROW).count() + 1);
    for row in text.split(ROW) {
        let mut fields = row.split(FIELD);
        parsed.push(parse(&mut fields)?);
        if fields.next().is_some() {
            return Err(misshapen("control characters"));
        }
    }
    Ok(parsed)
}

fn misshapen(what: &str) -> StoreError {
    StoreError::Corrupt(format!("a row that has {what} where none are expected"))
}

fn field<'a>(fields: &mut Fields<'a>) -> Result<&'a str, StoreError> {
    fields.next().ok_or_else(|| misshapen("no further columns"))
}

fn number(text: &str) -> Result<i64, StoreError> {
    text.parse().map_err(|_| misshapen("letters"))
}

fn bytes<const N: usize>(hex: &str) -> Result<[u8; N], StoreError> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return Err(misshapen("too many or too few bytes"));
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = digit(*high).zip(digit(*low)).ok_or_else(|| misshapen("letters"))?;
        *byte = high << 4 | low;
    }
    Ok(bytes)
}

fn account(fields: &mut Fields<'_>) -> Result<Account, StoreError> {
    let (id, plan_id, revision) = (field(fields)?, field(fields)?, number(field(fields)?)?);
    rows::account(id, plan_id, revision, field(fields)?)
}

fn key(fields: &mut Fields<'_>, intern: &mut Intern) -> Result<LoadedKey, StoreError> {
    let id = KeyId::from_bytes(bytes(field(fields)?)?);
    let account_id = intern.account_id(field(fields)?)?;
    let name = field(fields)?.into();
    let hash = SecretHash::from_bytes(bytes(field(fields)?)?);
    let environment = rows::environment(field(fields)?)?;
    let phase = match field(fields)? {
        "active" => KeyPhase::Active,
        "disabled" => KeyPhase::Disabled,
        "revoked" => KeyPhase::Revoked,
        status => return Err(StoreError::Corrupt(format!("key `{id}`: `{status}` is no status"))),
    };
    let expiry = Expiry::new(match field(fields)? {
        "" => None,
        millis => Some(Time::from_millis(number(millis)?)),
    });
    let revision = Revision::new(number(field(fields)?)?);
    let policy = intern.policy(id, field(fields)?)?;
    let metadata = intern.metadata(id, field(fields)?)?;
    let record = KeyRecord { name, policy, metadata, expiry, previous: None, revision, environment, phase };
    Ok(LoadedKey { id, account_id, hash, record })
}

fn retired_secret(fields: &mut Fields<'_>) -> Result<RetiredSecret, StoreError> {
    Ok(RetiredSecret {
        hash: SecretHash::from_bytes(bytes(field(fields)?)?),
        current: SecretHash::from_bytes(bytes(field(fields)?)?),
        expire_time: Time::from_millis(number(field(fields)?)?),
    })
}
