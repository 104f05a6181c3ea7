//! Blobs in memory, for tests. They are not checksummed: memory is not a disk.

use std::{
    collections::BTreeMap,
    ops::{Bound, Range},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{BLOB_LEN_MAX, Blob, BlobId, BlobWriter, Blobs, Compression, Repacked, Space, check_range, unreadable};
use crate::error::{Damage, Error, ErrorKind, Result};

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

    fn get(&self, id: BlobId) -> Result<Bytes> {
        let data = self.lock().get(&id).cloned();
        data.ok_or_else(|| unreadable(id, "it is missing"))
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
        let data = self.sealed.get(id)?;
        Ok(Arc::new(MemoryBlob { id, data }))
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

    /// Memory has one form only, so that every blob stays as it is.
    async fn repack(&self, id: BlobId, compression: Compression) -> Result<Repacked> {
        compression.checked()?;
        Ok(Repacked::unchanged(self.stored_len(id).await?))
    }

    async fn stored_len(&self, id: BlobId) -> Result<u64> {
        Ok(self.sealed.get(id)?.len() as u64)
    }

    async fn space(&self) -> Result<Option<Space>> {
        Ok(None)
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
        check_range(self.id, self.len(), &range)?;
        let at = |offset| usize::try_from(offset).expect("the blob is in memory, and the range within it");
        Ok(self.data.slice(at(range.start)..at(range.end)))
    }

    async fn verify(&self, range: Range<u64>) -> Result<Vec<Damage>> {
        check_range(self.id, self.len(), &range)?;
        Ok(Vec::new())
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
