//! Encoding: postcard in one datagram of at most [`MAX_MESSAGE`] bytes, nothing after it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("a message of {0} bytes does not decode")]
    Malformed(usize),
    #[error("a message could not be encoded")]
    Unencodable,
}

pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = postcard::to_stdvec(message).map_err(|_| CodecError::Unencodable)?;
    if bytes.len() > MAX_MESSAGE { Err(CodecError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Decodes one message that fills `bytes` to the end.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(CodecError::TooLong(bytes.len()));
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(CodecError::Malformed(bytes.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Request;
    use crate::runner::FromRunner;

    #[test]
    fn bytes_after_a_message_are_refused() {
        let mut bytes = encode(&Request::Pause).unwrap();
        assert_eq!(decode::<Request>(&bytes), Ok(Request::Pause));
        bytes.push(0);
        assert_eq!(decode::<Request>(&bytes), Err(CodecError::Malformed(bytes.len())));
    }

    #[test]
    fn giants_are_refused_both_ways() {
        assert!(decode::<Vec<u8>>(&vec![0; MAX_MESSAGE + 1]).is_err());
        assert!(matches!(encode(&vec![0u8; MAX_MESSAGE]), Err(CodecError::TooLong(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = decode::<FromRunner>(&bytes);
            let _ = decode::<Request>(&bytes);
        }
    }
}
