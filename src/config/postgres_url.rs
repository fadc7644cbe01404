//! The URL of a PostgreSQL database, which may hold a password.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};

/// Printed, and compared by what is printed, without its password.
#[derive(Clone)]
pub struct PostgresUrl(SecretString);

impl PostgresUrl {
    /// From its text. Absent where that is none, or not even a line of text. Whether the database can be reached by it, only the
    /// store can say.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"))?;
        let plain = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic());
        plain.then(|| Self(SecretString::from(text.to_owned())))
    }

    /// The whole of it.
    #[must_use]
    pub const fn secret(&self) -> &SecretString {
        &self.0
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.expose_secret();
        let (address, query) = text.split_once('?').map_or((text, None), |(address, query)| (address, Some(query)));
        let (scheme, rest) = address.split_once("://").unwrap_or(("postgres", address));
        let authority_end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        match authority.rsplit_once('@') {
            Some((user, host)) => {
                let shown = user.split_once(':').map_or_else(|| user.to_owned(), |(user, _)| format!("{user}:***"));
                write!(f, "{scheme}://{shown}@{host}{path}")?;
            }
            None => write!(f, "{address}")?,
        }
        for (place, parameter) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
            let shown = match parameter.split_once('=') {
                Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=***"),
                _ => parameter.to_owned(),
            };
            write!(f, "{}{shown}", if place == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

impl PartialEq for PostgresUrl {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for PostgresUrl {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let rows = [
            ("postgres://u:canary@h:5432/db", "postgres://u:***@h:5432/db"),
            ("postgresql://u:can@ary@h/db?sslmode=require", "postgresql://u:***@h/db?sslmode=require"),
            ("postgres://u@h/db?password=canary&a=b", "postgres://u@h/db?password=***&a=b"),
            ("postgres://h", "postgres://h"),
            ("postgres:///db?host=/run/postgresql", "postgres:///db?host=/run/postgresql"),
        ];
        for (text, shown) in rows {
            let url = PostgresUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("canary"), "{url:?}");
        }
        for text in ["postgres://", "mysql://h", "postgres://h db", "sqlite:x"] {
            assert!(PostgresUrl::parse(text).is_none(), "{text}");
        }
    }
}
