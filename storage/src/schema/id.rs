//! The names the store gives.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};

use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
};

/// Declares a 128-bit id that is written as 32 hexadecimal digits.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] #[cbor(with = "minicbor::bytes")] pub [u8; 16]);

        impl $name {
            /// An id that is new everywhere: 48 bits of time, in milliseconds, then 80 random bits.
            ///
            /// # Panics
            ///
            /// If the operating system has no randomness to give.
            pub fn generate(now: Timestamp) -> Self {
                Self(generate(now))
            }

            /// No id that was generated at `time` or later is smaller.
            pub fn first_at(time: Timestamp) -> Self {
                let mut id = [0; 16];
                set_time(&mut id, time);
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let mut id = [0; 16];
                hex::decode_to_slice(text, &mut id)
                    .map_err(|_| Error::new(ErrorKind::InvalidArgument, format!("{text:?} is not {}", $what)))?;
                Ok(Self(id))
            }
        }
    };
}

id!(
    /// A layout, and with it the object version (or multipart upload) it belongs to.
    ///
    /// A multipart upload's id becomes the id of the completed object's layout, so that completing it renames nothing.
    LayoutId,
    "a layout id"
);
id!(
    /// A bucket. A bucket that is deleted and created again has a new one.
    BucketId,
    "a bucket id"
);
id!(
    /// A job. Ids sort by time of creation.
    JobId,
    "a job id"
);

/// A random number.
///
/// # Panics
///
/// If the operating system has no randomness to give.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_be_bytes(bytes)
}

fn generate(now: Timestamp) -> [u8; 16] {
    let mut id = [0; 16];
    fill_random(&mut id);
    set_time(&mut id, now);
    id
}

/// The low 48 bits of the time, which last until the year 10889.
fn set_time(id: &mut [u8; 16], time: Timestamp) {
    for (to, from) in id.iter_mut().zip(time.0.to_be_bytes().iter().skip(2)) {
        *to = *from;
    }
}

fn fill_random(bytes: &mut [u8]) {
    use ring::rand::{SecureRandom, SystemRandom};
    SystemRandom::new()
        .fill(bytes)
        .expect("the operating system's random source works");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_survive_text() {
        let early = JobId::generate(Timestamp(1));
        let late = JobId::generate(Timestamp(2));
        assert!(early < late);
        assert_eq!(early.to_string().parse::<JobId>().unwrap(), early);
        for bad in ["", "00", &"0".repeat(31), &"g".repeat(32), &"0".repeat(33)] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }
}
