//! The aws-chunked encoding of bodies (S3 API Reference, "Signature Calculations for the Authorization Header:
//! Transferring Payload in Multiple Chunks", and "... Including Trailing Headers").

use anyhow::Result;

use super::{
    Request,
    sign::{AmzTime, Payload, Scope, sha256_hex, sign},
};
use crate::target::Target;

/// Whether chunks are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// Each chunk has a signature that goes on from the one before.
    Signed,
    /// Chunks have no signature.
    Unsigned,
}

/// What is wrong with the encoding, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoil {
    /// Nothing.
    Nothing,
    /// The signature of the last chunk with bytes is not the one of its bytes.
    ChunkSignature,
    /// The signature of the trailer is not the one of the trailer.
    TrailerSignature,
    /// There is no last, empty chunk, nor what stands behind it.
    End,
}

/// A body in chunks.
#[derive(Debug, Clone)]
pub struct Chunked<'c> {
    /// The bytes of each chunk.
    pub chunks: Vec<&'c [u8]>,
    /// Whether they are signed.
    pub kind: Chunks,
    /// A header behind the body.
    pub trailer: Option<(&'c str, String)>,
    /// What is wrong with it.
    pub spoil: Spoil,
}

impl Chunked<'_> {
    fn payload(&self) -> &'static str {
        match (self.kind, self.trailer.is_some()) {
            (Chunks::Signed, false) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            (Chunks::Signed, true) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            (Chunks::Unsigned, _) => "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        }
    }

    /// Gives `request` this body, and signs it.
    ///
    /// # Errors
    ///
    /// If the target is not plain HTTP.
    pub fn request(&self, request: Request, target: &Target) -> Result<Request> {
        let len: usize = self.chunks.iter().map(|chunk| chunk.len()).sum();
        self.request_of_len(request, target, len)
    }

    /// As [`Chunked::request`], with another declared length.
    ///
    /// # Errors
    ///
    /// If the target is not plain HTTP.
    pub fn request_of_len(&self, request: Request, target: &Target, len: usize) -> Result<Request> {
        let mut request = request
            .header("content-encoding", "aws-chunked")
            .header("x-amz-decoded-content-length", len.to_string());
        if let Some((name, _)) = &self.trailer {
            request = request.header("x-amz-trailer", *name);
        }
        let time = AmzTime::now();
        let signed = sign(request, target, &Payload::Declared(self.payload().to_owned()), &time)?;
        let mut request = signed.request;
        request.body = self.encode(&Scope::new(target, time), signed.signature);
        Ok(request)
    }

    fn encode(&self, scope: &Scope, seed: String) -> Vec<u8> {
        let mut body = Vec::new();
        let mut previous = seed;
        let end: &[&[u8]] = if self.spoil == Spoil::End { &[] } else { &[b""] };
        for (index, chunk) in self.chunks.iter().chain(end).enumerate() {
            body.extend_from_slice(format!("{:x}", chunk.len()).as_bytes());
            if self.kind == Chunks::Signed {
                let string = format!(
                    "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{previous}\n{}\n{}",
                    scope.time.long(),
                    scope.name(),
                    sha256_hex(b""),
                    sha256_hex(chunk)
                );
                previous = scope.sign(&string);
                let spoilt = self.spoil == Spoil::ChunkSignature && index + 1 == self.chunks.len();
                let shown = if spoilt { spoil(&previous) } else { previous.clone() };
                body.extend_from_slice(format!(";chunk-signature={shown}").as_bytes());
            }
            body.extend_from_slice(b"\r\n");
            body.extend_from_slice(chunk);
            // The last, empty chunk is followed by the trailer at once.
            if !chunk.is_empty() {
                body.extend_from_slice(b"\r\n");
            }
        }
        if self.spoil != Spoil::End {
            body.extend_from_slice(self.encode_trailer(scope, &previous).as_bytes());
            body.extend_from_slice(b"\r\n");
        }
        body
    }

    fn encode_trailer(&self, scope: &Scope, previous: &str) -> String {
        let Some((name, value)) = &self.trailer else {
            return String::new();
        };
        let mut text = format!("{name}:{value}\r\n");
        if self.kind == Chunks::Signed {
            let hash = sha256_hex(format!("{name}:{value}\n").as_bytes());
            let string = format!(
                "AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{previous}\n{hash}",
                scope.time.long(),
                scope.name()
            );
            let signature = scope.sign(&string);
            let shown = if self.spoil == Spoil::TrailerSignature {
                spoil(&signature)
            } else {
                signature
            };
            text.push_str(&format!("x-amz-trailer-signature:{shown}\r\n"));
        }
        text
    }
}

/// Another signature that looks like one.
fn spoil(signature: &str) -> String {
    signature
        .chars()
        .map(|digit| if digit == '0' { '1' } else { '0' })
        .collect()
}
