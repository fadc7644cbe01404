//! What a key may do, by name.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Invalid, shown};

/// The resource of Tollgate's own scopes, which are granted only by name.
pub const OWN_NAMESPACE: &str = "tollgate";

/// Tollgate's own scopes. There are no others in its namespace.
const OWN_SCOPES: [&str; 5] =
    ["tollgate:keys:read", "tollgate:keys:write", "tollgate:usage:read", "tollgate:check", "tollgate:admin"];

const SCOPE_BYTES_MAX: usize = 100;

/// A scope that a key holds: `resource:action`, or `resource:*` for every action of the resource, or `admin:*` for
/// every scope but Tollgate's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scope(Box<str>);

/// A scope as a request names it, borrowed from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeRef<'a>(&'a str);

impl Scope {
    /// From its text: words of `A-Z a-z 0-9 _ . -` joined by colons, at least two, the last of which may be `*`; up
    /// to 100 characters.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (resource, action) = split(text)?;
        if resource == "*" || resource.contains('*') || (action.contains('*') && action != "*") {
            return Err(shape(text));
        }
        if text.split(':').next() == Some(OWN_NAMESPACE) && !OWN_SCOPES.contains(&text) {
            return Err(Invalid::new(format!(
                "`{text}` is none of Tollgate's own scopes, which are {}",
                OWN_SCOPES.join(", ")
            )));
        }
        Ok(Self(Box::from(text)))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As something to ask for.
    #[must_use]
    pub fn as_ref(&self) -> ScopeRef<'_> {
        ScopeRef(&self.0)
    }

    /// Whether holding this grants `wanted`, which may itself end in `*`.
    #[must_use]
    pub fn grants(&self, wanted: ScopeRef<'_>) -> bool {
        if *self.0 == *wanted.0 {
            return true;
        }
        if wanted.is_own() {
            return false;
        }
        match self.0.strip_suffix(":*") {
            Some("admin") => true,
            Some(resource) => wanted.0.rsplit_once(':').is_some_and(|(wanted, _)| wanted == resource),
            None => false,
        }
    }

    /// Whether it is one of Tollgate's own.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.as_ref().is_own()
    }
}

impl ScopeRef<'static> {
    /// One of Tollgate's own, named in this program.
    pub(crate) fn own(name: &'static str) -> Self {
        debug_assert!(OWN_SCOPES.contains(&name), "{name} is none of Tollgate's own scopes");
        Self(name)
    }
}

impl<'a> ScopeRef<'a> {
    /// From its text, in the form of a [`Scope`].
    pub fn parse(text: &'a str) -> Result<Self, Invalid> {
        split(text)?;
        Ok(Self(text))
    }

    /// Its text.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether any of these grants it.
    #[must_use]
    pub fn is_granted_by(self, held: &[Scope]) -> bool {
        held.iter().any(|scope| scope.grants(self))
    }

    /// Whether it is one of Tollgate's own.
    #[must_use]
    pub fn is_own(self) -> bool {
        self.0.strip_prefix(OWN_NAMESPACE).is_some_and(|rest| rest.starts_with(':'))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The resource, which may hold colons of its own, and the action.
fn split(text: &str) -> Result<(&str, &str), Invalid> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'*' | b':');
    let (resource, action) = text.rsplit_once(':').ok_or_else(|| shape(text))?;
    if text.len() > SCOPE_BYTES_MAX
        || !text.bytes().all(word)
        || action.is_empty()
        || resource.split(':').any(str::is_empty)
    {
        return Err(shape(text));
    }
    Ok((resource, action))
}

fn shape(text: &str) -> Invalid {
    Invalid::new(format!(
        "`{}` is no scope: `resource:action` or `resource:*` is expected, of `A-Z a-z 0-9 _ . -`, up to {SCOPE_BYTES_MAX} characters",
        shown(text)
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grants() {
        let rows = [
            ("tasks:read", "tasks:read", true),
            ("tasks:read", "tasks:write", false),
            ("tasks:read", "task:read", false),
            ("tasks:*", "tasks:read", true),
            ("tasks:*", "tasks:*", true),
            ("tasks:read", "tasks:*", false),
            ("tasks:*", "projects:read", false),
            ("tasks:*", "tasks:sub:read", false),
            ("tasks:sub:*", "tasks:sub:read", true),
            ("admin:*", "tasks:read", true),
            ("admin:*", "projects:*", true),
            ("admin:*", "admin:users", true),
            ("admin:users", "tasks:read", false),
            ("admin:*", "tollgate:admin", false),
            ("admin:*", "tollgate:keys:read", false),
            ("admin:*", "tollgates:read", true),
            ("tollgate:admin", "tollgate:keys:read", false),
            ("tollgate:admin", "tollgate:admin", true),
        ];
        for (held, wanted, expected) in rows {
            let (held, wanted) = (Scope::parse(held).unwrap(), ScopeRef::parse(wanted).unwrap());
            assert_eq!(held.grants(wanted), expected, "{held} grants {wanted:?}");
        }
    }

    #[test]
    fn what_is_no_scope() {
        for wrong in [
            "",
            "tasks",
            ":",
            "tasks:",
            ":read",
            "tasks::read",
            "*:read",
            "*:*",
            "ta*:read",
            "tasks:re*",
            "tasks:réad",
            "tasks:a b",
            "tollgate:*",
            "tollgate:keys:*",
            "tollgate:everything",
            &format!("tasks:{}", "a".repeat(100)),
        ] {
            assert!(Scope::parse(wrong).is_err(), "{wrong}");
        }
    }

    /// The rule once more, word by word and slowly.
    fn model(held: &str, wanted: &str) -> bool {
        let held_words: Vec<&str> = held.split(':').collect();
        let wanted_words: Vec<&str> = wanted.split(':').collect();
        if held_words == wanted_words {
            return true;
        }
        if wanted_words[0] == "tollgate" || held_words.last() != Some(&"*") {
            return false;
        }
        held_words == ["admin", "*"]
            || (held_words.len() == wanted_words.len()
                && held_words[..held_words.len() - 1] == wanted_words[..held_words.len() - 1])
    }

    proptest! {
        #[test]
        fn grants_as_the_model_does(
            held in "(admin|tasks|users|tollgate)(:(read|write|keys|check))?:(read|write|\\*|check|admin)",
            wanted in "(admin|tasks|users|tollgate)(:(read|write|keys|check))?:(read|write|\\*|check|admin)",
        ) {
            if let (Ok(scope), Ok(asked)) = (Scope::parse(&held), ScopeRef::parse(&wanted)) {
                prop_assert_eq!(scope.grants(asked), model(&held, &wanted));
            }
        }
    }
}
