//! Blobs in memory, for tests. They are not checksummed: memory is not a disk.

use std::{
    collections::BTreeMap,
    ops::{Bound, Range},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{BLOB_LEN_MAX, Blob, BlobId, BlobWriter, Blobs};
use crate::error::{Error, ErrorKind, Result};

/// A store that ends with the process.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    sealed: Arc<Sealed>,
}

#[derive(Debug, Default)]
struct Sealed(Mutex<BTreeMap<BlobId, Bytes>>);

impl Sealed {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<BlobId, Bytes>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl MemoryBlobs {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>> {
        Ok(Box::new(MemoryWriter {
            id,
            sealed: Arc::clone(&self.sealed),
            data: Vec::new(),
        }))
    }

    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>> {
        match self.sealed.lock().get(&id) {
            Some(data) => Ok(Arc::new(MemoryBlob { id, data: data.clone() })),
            None => Err(Error::corrupt(format!("blob {id} is missing"))),
        }
    }

    async fn exists(&self, id: BlobId) -> Result<bool> {
        Ok(self.sealed.lock().contains_key(&id))
    }

    async fn delete(&self, id: BlobId) -> Result<()> {
        self.sealed.lock().remove(&id);
        Ok(())
    }

    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(self
            .sealed
            .lock()
            .range((start, Bound::Unbounded))
            .map(|(id, _)| *id)
            .take(limit)
            .collect())
    }
}

#[derive(Debug)]
struct MemoryBlob {
    id: BlobId,
    data: Bytes,
}

#[async_trait]
impl Blob for MemoryBlob {
    fn len(&self) -> u64 {
        self.data.len() as u64
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let len = self.len();
        let within = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        match within {
            Some((start, end)) if start <= end && range.end <= len => Ok(self.data.slice(start..end)),
            _ => Err(Error::corrupt(format!(
                "blob {} has {len} bytes, and not those of {range:?}",
                self.id
            ))),
        }
    }
}

#[derive(Debug)]
struct MemoryWriter {
    id: BlobId,
    sealed: Arc<Sealed>,
    data: Vec<u8>,
}

#[async_trait]
impl BlobWriter for MemoryWriter {
    async fn append(&mut self, data: Bytes) -> Result<()> {
        if self.data.len() as u64 + data.len() as u64 > BLOB_LEN_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("blob {} is over {BLOB_LEN_MAX} bytes", self.id),
            ));
        }
        self.data.extend_from_slice(&data);
        Ok(())
    }

    async fn seal(self: Box<Self>) -> Result<u64> {
        let len = self.data.len() as u64;
        self.sealed.lock().insert(self.id, self.data.into());
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::contract;

    #[tokio::test]
    async fn it_keeps_the_contract() {
        contract::run(async || Arc::new(MemoryBlobs::new()) as Arc<dyn Blobs>).await;
    }
}
