//! What a route asks of its callers, as the edge's configuration says it: names and values in text.
//!
//! The parser is strict, because whoever made a mistake here believes that the route is protected: an unknown name, a name
//! given twice, an empty value and a malformed one are all faults, and a fault never lets a request pass.

use crate::domain::{Environment, ScopeRef, caps, shown};
use crate::engine::COST_MAX;

use super::{Fault, MessageFormat};

/// What a route asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::transport) struct Policy<'a> {
    /// Scopes that the key must all have.
    pub(in crate::transport) scopes: Vec<ScopeRef<'a>>,
    /// Scopes of which it must have one.
    pub(in crate::transport) any_scopes: Vec<ScopeRef<'a>>,
    /// Cost units.
    pub(in crate::transport) cost: u64,
    /// The environment that the key must be of.
    pub(in crate::transport) environment: Option<Environment>,
    pub(in crate::transport) mode: Mode,
    /// How a denial is written, where it is not to be as configured.
    pub(in crate::transport) message_format: Option<MessageFormat>,
}

/// How much of a check a route wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport) enum Mode {
    /// Decide and charge.
    Consume,
    /// Decide, and charge nothing.
    Peek,
    /// Identify those who send a key, and let pass those who send none.
    Off,
}

impl Default for Policy<'_> {
    fn default() -> Self {
        Self {
            scopes: Vec::new(),
            any_scopes: Vec::new(),
            cost: 1,
            environment: None,
            mode: Mode::Consume,
            message_format: None,
        }
    }
}

/// The names that a policy has.
pub(in crate::transport) const NAMES: [&str; 6] =
    ["scopes", "any_scopes", "cost", "environment", "mode", "message_format"];

/// A policy in the making.
#[derive(Debug, Default)]
pub(in crate::transport) struct PolicyBuilder<'a> {
    policy: Policy<'a>,
    given: [bool; NAMES.len()],
}

impl<'a> PolicyBuilder<'a> {
    /// Takes one setting in.
    pub(in crate::transport) fn set(&mut self, name: &str, value: &'a str) -> Result<(), Fault> {
        let Some(place) = NAMES.iter().position(|known| *known == name) else {
            let known = NAMES.map(|name| format!("`{name}`")).join(", ");
            return Err(Fault::Policy(format!("`{}` is no setting of a policy; there are {known}", shown(name))));
        };
        if self.given.get_mut(place).is_none_or(|given| std::mem::replace(given, true)) {
            return Err(Fault::Policy(format!("`{name}` is given twice")));
        }
        let policy = &mut self.policy;
        match name {
            "scopes" => policy.scopes = scopes(name, value)?,
            "any_scopes" => policy.any_scopes = scopes(name, value)?,
            "cost" => policy.cost = cost(value)?,
            "environment" => {
                let words = [("live", Environment::Live), ("test", Environment::Test)];
                policy.environment = Some(word(name, value, words)?);
            }
            "mode" => {
                policy.mode =
                    word(name, value, [("consume", Mode::Consume), ("peek", Mode::Peek), ("off", Mode::Off)])?;
            }
            _ => {
                let words = [("json", MessageFormat::Json), ("problem", MessageFormat::Problem)];
                policy.message_format = Some(word(name, value, words)?);
            }
        }
        Ok(())
    }

    /// The policy; what was not given has its default.
    pub(in crate::transport) fn build(self) -> Policy<'a> {
        self.policy
    }
}

fn cost(value: &str) -> Result<u64, Fault> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let cost = value.parse().ok().filter(|cost| digits && *cost <= COST_MAX);
    cost.ok_or_else(|| Fault::Policy(format!("`cost` is `{}`; expected a number from 0 to {COST_MAX}", shown(value))))
}

/// Scopes, separated by commas or spaces.
fn scopes<'a>(name: &str, value: &'a str) -> Result<Vec<ScopeRef<'a>>, Fault> {
    let words = value.split([',', ' ']).filter(|word| !word.is_empty());
    let parsed: Result<Vec<_>, _> = words.map(ScopeRef::parse).collect();
    let scopes = parsed.map_err(|error| Fault::Policy(format!("`{name}`: {error}")))?;
    let max = caps::SCOPES_ASKED_MAX;
    if scopes.is_empty() || scopes.len() > max {
        return Err(Fault::Policy(format!("`{name}` has {} scopes; expected 1 to {max}", scopes.len())));
    }
    Ok(scopes)
}

fn word<T, const N: usize>(name: &str, value: &str, words: [(&str, T); N]) -> Result<T, Fault> {
    let allowed = words.each_ref().map(|(word, _)| format!("`{word}`")).join(", ");
    let found = words.into_iter().find(|(word, _)| *word == value);
    found
        .map(|(_, value)| value)
        .ok_or_else(|| Fault::Policy(format!("`{name}` is `{}`; expected one of {allowed}", shown(value))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy<'a>(settings: &[(&str, &'a str)]) -> Result<Policy<'a>, String> {
        let mut builder = PolicyBuilder::default();
        for (name, value) in settings {
            builder.set(name, value).map_err(|fault| fault.to_string())?;
        }
        Ok(builder.build())
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let policy = policy(&[]).unwrap();
        assert_eq!((policy.cost, policy.mode), (1, Mode::Consume));
        assert!(policy.scopes.is_empty() && policy.any_scopes.is_empty() && policy.environment.is_none());
    }

    #[test]
    fn every_setting_is_read() {
        let settings = [
            ("scopes", "tasks:read,tasks:write"),
            ("any_scopes", "a:b c:d"),
            ("cost", "0"),
            ("environment", "test"),
            ("mode", "off"),
            ("message_format", "problem"),
        ];
        let policy = policy(&settings).unwrap();
        let names = |scopes: &[ScopeRef<'_>]| scopes.iter().map(|s| s.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&policy.scopes), ["tasks:read", "tasks:write"]);
        assert_eq!(names(&policy.any_scopes), ["a:b", "c:d"]);
        assert_eq!((policy.cost, policy.mode), (0, Mode::Off));
        assert_eq!(policy.environment, Some(Environment::Test));
        assert_eq!(policy.message_format, Some(MessageFormat::Problem));
    }

    #[test]
    fn whatever_is_not_understood_is_a_fault() {
        for (name, value) in [
            ("scope", "tasks:read"),
            ("Scopes", "tasks:read"),
            ("", "1"),
            ("scopes", ""),
            ("scopes", " , "),
            ("scopes", "tasks"),
            ("scopes", "tasks:read;tasks:write"),
            ("any_scopes", "tasks:"),
            ("cost", ""),
            ("cost", "-1"),
            ("cost", "+1"),
            ("cost", " 1"),
            ("cost", "1.5"),
            ("cost", "1000000000001"),
            ("cost", "99999999999999999999"),
            ("environment", "LIVE"),
            ("environment", ""),
            ("mode", "Off"),
            ("mode", "none"),
            ("mode", "off "),
            ("message_format", "html"),
        ] {
            assert!(policy(&[(name, value)]).is_err(), "{name}={value}");
        }
        assert!(policy(&[("cost", "1"), ("cost", "1")]).is_err(), "twice");
        let many = vec!["a:b"; caps::SCOPES_ASKED_MAX + 1].join(",");
        assert!(policy(&[("scopes", &many)]).is_err());
    }
}
