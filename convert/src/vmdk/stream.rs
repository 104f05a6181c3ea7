//! A streamOptimized VMDK file, put together as its grains come: nothing that was written is changed.
//!
//! ```text
//! header │ descriptor │ grains, each after a marker │ marker, grain table │ … │ marker, grain directory │ marker, footer │ end marker
//! ```
//!
//! Everything starts at a sector. A grain table follows the grains that it lists; the footer, a copy of the header, knows where the
//! directory is. A grain that is all zeros is absent, and so is a table without grains.
//!
//! Format: "Virtual Disk Format", "Stream-Optimized Compressed Sparse Extents".

use super::descriptor::{self, CreateType};
use super::header::{COMPRESSED, DIRECTORY_AT_END, Header, LINE_ENDS_VALID, MARKERS};
use super::planner::{DESCRIPTOR_SECTORS, FILE_SIZE_MAX, GRAIN_SIZE};
use super::{SECTOR, SECTOR_SIZE, TABLE_ENTRIES, TABLE_LEN};
use crate::encode::{Assemble, Encoded};
use crate::identity::Identity;
use crate::plan::sectored;
use crate::{Error, Image, safety};

/// The version of files with compressed grains.
const VERSION: u32 = 3;
/// Deflate, the only compression there is.
const COMPRESSION: u16 = 1;
/// The header and the descriptor fill a grain, as everybody makes it.
const OVERHEAD_SECTORS: u64 = 128;
/// What a marker says that stands before something else than a grain.
#[derive(Debug, Clone, Copy)]
enum Marker {
    EndOfStream = 0,
    Table = 1,
    Directory = 2,
    Footer = 3,
}

/// A file in the making.
#[derive(Debug)]
pub(crate) struct Assembler {
    header: Header,
    /// What the file begins with, until it is written.
    descriptor: Option<String>,
    /// Where the file goes on.
    end: u64,
    /// Where the grain tables are, as far as they are written.
    directory: Vec<u32>,
    /// The grain table that is being filled.
    table: Vec<u32>,
}

impl Assembler {
    pub(crate) fn new(image: &dyn Image, seed: &[u8]) -> Self {
        let sectors = sectored(image) / SECTOR;
        let [first, second, third, fourth, ..] = Identity::new(seed, image.virtual_size()).uuid("vmdk content");
        // The largest two are reserved.
        let content_id = u32::from_be_bytes([first, second, third, fourth]) >> 1;
        let header = Header {
            version: VERSION,
            flags: LINE_ENDS_VALID | COMPRESSED | MARKERS,
            redundant_sector: 0,
            directory_sector: DIRECTORY_AT_END,
            overhead_sectors: OVERHEAD_SECTORS,
            compression: COMPRESSION,
            ..Header::new(sectors, GRAIN_SIZE.get() / SECTOR, DESCRIPTOR_SECTORS)
        };
        Self {
            header,
            descriptor: Some(descriptor::render(CreateType::StreamOptimized, sectors, content_id)),
            end: 0,
            directory: Vec::new(),
            table: vec![0; usize::try_from(TABLE_ENTRIES).expect("512")],
        }
    }

    /// Appends bytes, and zeros up to a sector.
    fn append(&mut self, bytes: &[u8], body: &mut Vec<u8>) {
        body.extend_from_slice(bytes);
        let end = self.end.saturating_add(bytes.len() as u64);
        self.end = end.next_multiple_of(SECTOR_SIZE);
        let padding = usize::try_from(self.end.saturating_sub(end)).expect("less than a sector");
        body.resize(body.len().saturating_add(padding), 0);
    }

    /// The sector where the file goes on, if an entry can say it.
    fn sector(&self) -> Result<u32, Error> {
        safety::at_most("the file with its grains", self.end, FILE_SIZE_MAX)?;
        u32::try_from(self.end / SECTOR).map_err(|_| Error::corrupt("a sector beyond the largest"))
    }

    fn append_marked(&mut self, marker: Marker, bytes: &[u8], body: &mut Vec<u8>) -> Result<u32, Error> {
        let sectors = (bytes.len() as u64).div_ceil(SECTOR_SIZE);
        let head = [&sectors.to_le_bytes()[..], &[0; 4], &(marker as u32).to_le_bytes()].concat();
        self.append(&head, body);
        let sector = self.sector()?;
        self.append(bytes, body);
        Ok(sector)
    }

    fn push_grain(&mut self, grain: u64, bytes: &[u8], body: &mut Vec<u8>) -> Result<(), Error> {
        let table = grain / TABLE_ENTRIES;
        while (self.directory.len() as u64) < table {
            self.end_table(body)?;
        }
        let sector = self.sector()?;
        let index = usize::try_from(grain % TABLE_ENTRIES).expect("below 512");
        *self.table.get_mut(index).expect("an index in the table") = sector;
        let place = grain.saturating_mul(GRAIN_SIZE.get() / SECTOR);
        let len = u32::try_from(bytes.len()).expect("a grain is small");
        body.extend_from_slice(&place.to_le_bytes());
        body.extend_from_slice(&len.to_le_bytes());
        self.end = self.end.saturating_add(12);
        self.append(bytes, body);
        Ok(())
    }

    /// Writes the grain table, if there is anything in it.
    fn end_table(&mut self, body: &mut Vec<u8>) -> Result<(), Error> {
        if self.table.iter().all(|entry| *entry == 0) {
            self.directory.push(0);
            return Ok(());
        }
        let bytes = entries(&self.table);
        debug_assert_eq!(bytes.len() as u64, TABLE_LEN, "a whole table");
        let sector = self.append_marked(Marker::Table, &bytes, body)?;
        self.directory.push(sector);
        self.table.fill(0);
        Ok(())
    }
}

fn entries(table: &[u32]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

impl Assemble for Assembler {
    fn start(&mut self, body: &mut Vec<u8>) {
        let Some(descriptor) = self.descriptor.take() else {
            return;
        };
        self.append(&self.header.render(), body);
        self.append(descriptor.as_bytes(), body);
        let overhead = OVERHEAD_SECTORS.saturating_mul(SECTOR_SIZE);
        let padding = usize::try_from(overhead.saturating_sub(self.end)).expect("less than a grain");
        self.append(&vec![0; padding], body);
    }

    fn push(&mut self, encoded: &Encoded, body: &mut Vec<u8>) -> Result<(), Error> {
        for (grain, _, bytes) in encoded.units(GRAIN_SIZE.get()) {
            if !bytes.is_empty() {
                self.push_grain(grain, bytes, body)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, _: u64, body: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        while (self.directory.len() as u64) < self.header.table_count() {
            self.end_table(body)?;
        }
        let directory = entries(&self.directory);
        let sector = self.append_marked(Marker::Directory, &directory, body)?;
        let footer = Header {
            directory_sector: u64::from(sector),
            ..self.header.clone()
        };
        self.append_marked(Marker::Footer, &footer.render(), body)?;
        self.append_marked(Marker::EndOfStream, &[], body)?;
        Ok(Vec::new())
    }
}
