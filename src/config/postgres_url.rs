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
        let text = without_password_parameters(self.0.expose_secret());
        let (scheme, rest) = text.split_once("://").unwrap_or(("postgres", &text));
        // Who has not encoded a password may have any sign in it: what precedes the last `@` is not told apart further.
        match rest.rsplit_once('@') {
            Some((user, host)) => match user.split_once(':') {
                Some((user, _)) => write!(f, "{scheme}://{user}:***@{host}"),
                None => write!(f, "{scheme}://{user}@{host}"),
            },
            None => write!(f, "{scheme}://{rest}"),
        }
    }
}

/// With `***` for the values of parameters that hold a password.
fn without_password_parameters(url: &str) -> String {
    let mut shown = String::with_capacity(url.len());
    for (place, part) in url.split_inclusive(['?', '&']).enumerate() {
        let (parameter, end) = match part.strip_suffix(['?', '&']) {
            Some(parameter) => (parameter, part.get(parameter.len()..).unwrap_or("")),
            None => (part, ""),
        };
        match parameter.split_once('=') {
            Some((name, _)) if place > 0 && name.to_ascii_lowercase().contains("password") => {
                shown.push_str(name);
                shown.push_str("=***");
            }
            _ => shown.push_str(parameter),
        }
        shown.push_str(end);
    }
    shown
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
            ("postgres://u:ca/na?ry=&@@h/db", "postgres://u:***@h/db"),
            ("postgres://u:x@h/db?PassWord=ca@nary&a=b", "postgres://u:***@h/db?PassWord=***&a=b"),
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
