//! Reads the few fields of a `CheckRequest` that matter, where they stand, without copying any: Envoy sends each header
//! of the client's request and more, and decoding all of that into strings costs several times what the check does.
//!
//! A field given twice counts as in any protobuf decoder: the last one of a scalar, the sum of a message or a list
//! (protobuf encoding, "Last One Wins"). A property test holds this reader against prost.

use super::view::View;

/// Headers that most requests have no more of, so that the list of them is allocated once.
const HEADERS_EXPECTED: usize = 32;

/// The message is not one. It names no place, because its sender is a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A field's content, as far as this reader has use for it.
enum Value<'a> {
    Bytes(&'a [u8]),
    Other,
}

/// The fields of one message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next one's number and content; absent at the end.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let (number, kind) = (tag >> 3, tag & 7);
        if number == 0 || number >= 1 << 29 {
            return Err(Malformed);
        }
        let value = match kind {
            0 => self.varint().map(|_| Value::Other)?,
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).map_err(|_| Malformed)?)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            // Groups are of an older syntax, which Envoy's messages are not written in.
            _ => return Err(Malformed),
        };
        Ok(Some((number, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for place in 0..10 {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            // The tenth byte has room for one bit.
            if place == 9 && byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }
}

/// Calls `field` for each field with a content of bytes. A field of ours in another encoding is malformed.
fn each<'a>(
    message: &'a [u8],
    ours: &[u64],
    mut field: impl FnMut(u64, &'a [u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        match value {
            Value::Bytes(bytes) => field(number, bytes)?,
            Value::Other if ours.contains(&number) => return Err(Malformed),
            Value::Other => {}
        }
    }
    Ok(())
}

/// `envoy.service.auth.v3.CheckRequest`.
pub(super) fn check_request(message: &[u8]) -> Result<View<'_>, Malformed> {
    let mut view = View { headers: Vec::with_capacity(HEADERS_EXPECTED), ..View::default() };
    each(message, &[1], |number, bytes| if number == 1 { attributes(bytes, &mut view) } else { Ok(()) })?;
    Ok(view)
}

fn attributes<'a>(message: &'a [u8], view: &mut View<'a>) -> Result<(), Malformed> {
    each(message, &[1, 4, 10], |number, bytes| match number {
        1 => each(bytes, &[1], |number, bytes| if number == 1 { address(bytes, view) } else { Ok(()) }),
        4 => each(bytes, &[2], |number, bytes| if number == 2 { http(bytes, view) } else { Ok(()) }),
        10 => {
            let (name, value) = entry(bytes)?;
            view.extensions.push((name, value));
            Ok(())
        }
        _ => Ok(()),
    })
}

/// `envoy.config.core.v3.Address`, of which a socket's is read.
fn address<'a>(message: &'a [u8], view: &mut View<'a>) -> Result<(), Malformed> {
    each(message, &[1], |number, bytes| match number {
        1 => each(bytes, &[2], |number, bytes| {
            if number == 2 {
                view.source_address = bytes;
            }
            Ok(())
        }),
        _ => Ok(()),
    })
}

fn http<'a>(message: &'a [u8], view: &mut View<'a>) -> Result<(), Malformed> {
    each(message, &[1, 2, 3, 4, 5, 13], |number, bytes| {
        match number {
            1 => view.id = bytes,
            2 => view.method = bytes,
            3 => view.headers.push(entry(bytes)?),
            4 => view.path = bytes,
            5 => view.host = bytes,
            13 => each(bytes, &[1], |number, bytes| {
                if number == 1 {
                    view.headers.push(header_value(bytes)?);
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })
}

/// An entry of a map of strings.
fn entry(message: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
    each(message, &[1, 2], |number, bytes| {
        match number {
            1 => name = bytes,
            2 => value = bytes,
            _ => {}
        }
        Ok(())
    })?;
    Ok((name, value))
}

/// `envoy.config.core.v3.HeaderValue`, whose value is text or raw.
fn header_value(message: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut name, mut text, mut raw): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
    each(message, &[1, 2, 3], |number, bytes| {
        match number {
            1 => name = bytes,
            2 => text = bytes,
            3 => raw = bytes,
            _ => {}
        }
        Ok(())
    })?;
    Ok((name, if raw.is_empty() { text } else { raw }))
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::proto::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, SocketAddress, address};
    use crate::proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
    use crate::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest};

    fn text() -> impl Strategy<Value = String> {
        "[ -~é]{0,40}"
    }

    fn request() -> impl Strategy<Value = CheckRequest> {
        let header = (text(), text(), vec(any::<u8>(), 0..20));
        let header = header.prop_map(|(key, value, raw_value)| HeaderValue { key, value, raw_value });
        let http = (text(), text(), btree_map(text(), text(), 0..30), text(), text(), vec(header, 0..30)).prop_map(
            |(id, method, headers, path, host, raw)| {
                let header_map = (!raw.is_empty()).then_some(HeaderMap { headers: raw });
                HttpRequest { id, method, headers, path, host, header_map }
            },
        );
        (http, text(), btree_map(text(), text(), 0..6)).prop_map(|(http, address, context_extensions)| {
            let address = address::Address::SocketAddress(SocketAddress { address });
            let source = Some(Peer { address: Some(Address { address: Some(address) }) });
            let request = Some(Request { http: Some(http) });
            CheckRequest { attributes: Some(AttributeContext { source, request, context_extensions }) }
        })
    }

    /// What prost makes of a message, in the form of a view.
    fn expected(request: &CheckRequest) -> View<'_> {
        let mut view = View::default();
        let Some(attributes) = &request.attributes else { return view };
        let address = attributes.source.as_ref().and_then(|peer| peer.address.as_ref()?.address.as_ref());
        if let Some(address::Address::SocketAddress(socket)) = address {
            view.source_address = socket.address.as_bytes();
        }
        view.extensions = attributes.context_extensions.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        let Some(http) = attributes.request.as_ref().and_then(|request| request.http.as_ref()) else { return view };
        (view.id, view.method) = (http.id.as_bytes(), http.method.as_bytes());
        (view.path, view.host) = (http.path.as_bytes(), http.host.as_bytes());
        view.headers = http.headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        for header in http.header_map.iter().flat_map(|map| &map.headers) {
            let raw = Some(header.raw_value.as_slice()).filter(|raw| !raw.is_empty());
            view.headers.push((header.key.as_bytes(), raw.unwrap_or(header.value.as_bytes())));
        }
        view
    }

    proptest! {
        #[test]
        fn it_reads_what_prost_reads(request in request()) {
            let message = request.encode_to_vec();
            prop_assert_eq!(check_request(&message), Ok(expected(&request)));
        }

        /// Messages one after the other are one message, for any decoder.
        #[test]
        fn it_merges_as_prost_merges(first in request(), second in request()) {
            let message = [first.encode_to_vec(), second.encode_to_vec()].concat();
            let merged = CheckRequest::decode(message.as_slice()).unwrap();
            let (mut read, mut expected) = (check_request(&message).unwrap(), expected(&merged));
            // A name given twice stands once in a map, and twice in what we read, which refuses it.
            for view in [&mut read, &mut expected] {
                view.headers.clear();
                view.extensions.clear();
            }
            prop_assert_eq!(read, expected);
        }

        /// prost minds text that is no UTF-8; here it is for whoever reads it as text.
        #[test]
        fn what_it_reads_prost_reads(message in vec(any::<u8>(), 0..300)) {
            if check_request(&message).is_ok()
                && let Err(error) = CheckRequest::decode(message.as_slice())
            {
                prop_assert!(error.to_string().contains("UTF-8"), "{error}");
            }
        }

        #[test]
        fn a_message_that_is_cut_off_is_refused_or_shorter(request in request(), at in any::<prop::sample::Index>()) {
            let message = request.encode_to_vec();
            let cut = &message[..at.index(message.len() + 1)];
            prop_assert_eq!(check_request(cut).is_ok(), CheckRequest::decode(cut).is_ok());
        }
    }
}
