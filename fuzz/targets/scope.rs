//! A scope grants what its description says, and Tollgate's own are granted only by name.
//!
//! An input is lines: the scopes that are held, and in the last line the one that is asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::domain::{Scope, ScopeRef};

fuzz_target!(|input: &str| {
    let (held, wanted) = input.rsplit_once('\n').unwrap_or(("", input));
    let held: Vec<Scope> = held.split('\n').filter_map(|text| Scope::parse(text).ok()).collect();
    for scope in &held {
        assert_eq!(Scope::parse(scope.as_str()).as_ref(), Ok(scope));
        assert!(scope.grants(scope.as_ref()), "{scope} does not grant itself");
    }
    let Ok(wanted) = ScopeRef::parse(wanted) else {
        assert!(Scope::parse(wanted).is_err(), "{wanted} can be held and not asked for");
        return;
    };
    let granted = wanted.is_granted_by(&held);
    assert_eq!(granted, held.iter().any(|scope| model(scope.as_str(), wanted.as_str())), "{held:?} {wanted:?}");
    if wanted.is_own() && granted {
        assert!(held.iter().any(|scope| scope.as_str() == wanted.as_str()));
    }
});

/// The rule once more, word by word.
fn model(held: &str, wanted: &str) -> bool {
    let (held, wanted): (Vec<&str>, Vec<&str>) = (held.split(':').collect(), wanted.split(':').collect());
    let [resource @ .., "*"] = held.as_slice() else { return held == wanted };
    let [wanted_resource @ .., _] = wanted.as_slice() else { return false };
    held == wanted || (wanted[0] != "tollgate" && (resource == ["admin"] || resource == wanted_resource))
}
