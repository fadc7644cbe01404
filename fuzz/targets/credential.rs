//! Whatever is sent as a credential has a shape and hashes, and is called ours if and only if the format says so.
//!
//! An input is a credential. Since no mutation finds a checksum, each is also tried as what a checksum covers, with the
//! right one after it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tollgate::decision::secret::{Brand, CREDENTIAL_BYTES_MAX, Hasher, Shape};

static PEPPERED: LazyLock<Hasher> =
    LazyLock::new(|| Hasher::with_peppers(&[("p2".to_owned(), vec![2; 32]), ("p1".to_owned(), vec![1; 64])]));

fuzz_target!(|credential: &str| {
    check(credential);
    check(&format!("{credential}{}", checksum(credential)));
});

fn check(credential: &str) {
    let shape = Brand::default().shape(credential);
    assert_eq!(shape == Shape::Own, is_own(credential));
    assert_eq!(shape == Shape::Empty, credential.is_empty());
    let printable = credential.bytes().all(|b| b.is_ascii_graphic());
    if credential.len() > CREDENTIAL_BYTES_MAX || !printable {
        assert_eq!(shape, Shape::Malformed);
    }
    // Of another deployment's brand it is not ours.
    assert_ne!(Brand::parse("tollgate").unwrap().shape(credential), Shape::Own);

    let plain: Vec<_> = Hasher::plain().candidates(credential, shape).collect();
    let peppered: Vec<_> = PEPPERED.candidates(credential, shape).collect();
    assert_eq!(plain.len(), 1);
    assert_eq!(peppered.len(), if shape == Shape::Own { 3 } else { 1 });
    // Keys that were made before there was a pepper go on verifying.
    assert!(peppered.last() == plain.last());
}

/// The format once more, from its description.
fn is_own(credential: &str) -> bool {
    let Some((covered, given)) = credential.len().checked_sub(6).and_then(|at| credential.split_at_checked(at)) else {
        return false;
    };
    let digits = covered.strip_prefix("sk_live_").or_else(|| covered.strip_prefix("sk_test_"));
    digits.is_some_and(|digits| digits.len() == 43 && digits.bytes().all(|b| b.is_ascii_alphanumeric()))
        && given == checksum(covered)
}

fn checksum(covered: &str) -> String {
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let crc = u64::from(crc32fast::hash(covered.as_bytes()));
    let digit = |place: u32| char::from(digits[usize::try_from(crc / 62_u64.pow(place) % 62).unwrap()]);
    (0..6).rev().map(digit).collect()
}
