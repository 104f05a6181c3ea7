//! An OVA: a tar archive of a descriptor (OVF), a manifest and a stream-optimized VMDK.
//!
//! ```text
//! descriptor, filled up with spaces │ manifest │ disk │ two blocks of zeros
//! ```
//!
//! The descriptor has a fixed length, so that all before the disk is a head of a length that is known before the disk is
//! encoded; what is in it, the length and digest of the disk, is known after.
//!
//! Format: DMTF DSP0243 1.1 ("Open Virtualization Format Specification"), "OVF package".

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{Assemble, Encoded};
use crate::identity::Identity;
use crate::plan::sectored;
use crate::{Error, Image, vmdk};

const BLOCK_LEN: usize = 512;
/// [`BLOCK_LEN`] as a length of a file.
pub(super) const BLOCK_SIZE: u64 = BLOCK_LEN as u64;
/// Longer than any descriptor that is made here.
const DESCRIPTOR_LEN: usize = 8 << 10;
/// Two lines.
const MANIFEST_LEN_MAX: usize = BLOCK_LEN;
/// A header and the descriptor, a header and the manifest, and the header of the disk.
pub(super) const HEAD_LEN: u64 = (3 * BLOCK_LEN + DESCRIPTOR_LEN + MANIFEST_LEN_MAX) as u64;

const DESCRIPTOR: &str = "image.ovf";
const MANIFEST: &str = "image.mf";
const DISK: &str = "image-disk1.vmdk";

/// An archive in the making.
#[derive(Debug)]
pub(super) struct Assembler {
    disk: vmdk::stream::Assembler,
    digest: Sha256,
    /// Bytes of the disk so far.
    len: u64,
    uuid: [u8; 16],
    capacity: u64,
}

impl Assembler {
    pub(super) fn new(image: &dyn Image, seed: &[u8]) -> Self {
        Self {
            disk: vmdk::stream::Assembler::new(image, seed),
            digest: Sha256::new(),
            len: 0,
            uuid: Identity::new(seed, image.virtual_size()).uuid("ova machine"),
            capacity: sectored(image),
        }
    }

    /// Counts and digests what was added to `body` from `start` on.
    fn note(&mut self, body: &[u8], start: usize) {
        let added = body.get(start..).unwrap_or_default();
        self.digest.update(added);
        self.len = self.len.saturating_add(added.len() as u64);
    }
}

impl Assemble for Assembler {
    fn start(&mut self, body: &mut Vec<u8>) {
        let start = body.len();
        self.disk.start(body);
        self.note(body, start);
    }

    fn push(&mut self, encoded: &Encoded, body: &mut Vec<u8>) -> Result<(), Error> {
        let start = body.len();
        self.disk.push(encoded, body)?;
        self.note(body, start);
        Ok(())
    }

    fn finish(&mut self, virtual_size: u64, body: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        let start = body.len();
        self.disk.finish(virtual_size, body)?;
        self.note(body, start);
        end(self.len, body);
        let descriptor = descriptor(self.len, self.capacity, self.uuid);
        let digest = hex::encode(std::mem::take(&mut self.digest).finalize());
        let descriptor_digest = hex::encode(Sha256::digest(descriptor.as_bytes()));
        let manifest = format!("SHA256({DESCRIPTOR})= {descriptor_digest}\nSHA256({DISK})= {digest}\n");
        let mut head = Vec::new();
        for (name, content) in [(DESCRIPTOR, descriptor), (MANIFEST, manifest)] {
            head.extend(header(tar::Header::new_ustar(), name, content.len() as u64));
            head.extend(content.into_bytes());
            head.resize(head.len().next_multiple_of(BLOCK_LEN), 0);
        }
        head.extend(header(tar::Header::new_ustar(), DISK, self.len));
        debug_assert_eq!(head.len() as u64, HEAD_LEN, "the head has the length that was promised");
        Ok(head)
    }
}

/// A header of an archive, for a file.
pub(super) fn header(mut header: tar::Header, name: &str, len: u64) -> [u8; BLOCK_LEN] {
    header.set_path(name).expect("a short name");
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(len);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    *header.as_bytes()
}

/// What follows the last file of an archive, of `len` bytes.
pub(super) fn end(len: u64, body: &mut Vec<u8>) {
    let padding = len.next_multiple_of(BLOCK_SIZE).saturating_sub(len);
    let padding = usize::try_from(padding).expect("less than a block");
    body.resize(body.len().saturating_add(padding).saturating_add(2 * BLOCK_LEN), 0);
}

/// The hardware of the machine. Values are in alphabetical order of their names, as the schema wants them.
const ITEMS: [&[(&str, &str)]; 5] = [
    &[
        ("ElementName", "1 processor"),
        ("InstanceID", "1"),
        ("ResourceType", "3"),
        ("VirtualQuantity", "1"),
    ],
    &[
        ("AllocationUnits", "byte * 2^20"),
        ("ElementName", "1024 MiB of memory"),
        ("InstanceID", "2"),
        ("ResourceType", "4"),
        ("VirtualQuantity", "1024"),
    ],
    &[
        ("Address", "0"),
        ("ElementName", "SCSI controller 0"),
        ("InstanceID", "3"),
        ("ResourceSubType", "lsilogic"),
        ("ResourceType", "6"),
    ],
    &[
        ("AddressOnParent", "0"),
        ("ElementName", "Disk 1"),
        ("HostResource", "ovf:/disk/disk1"),
        ("InstanceID", "4"),
        ("Parent", "3"),
        ("ResourceType", "17"),
    ],
    &[
        ("AddressOnParent", "7"),
        ("AutomaticAllocation", "true"),
        ("Connection", "VM Network"),
        ("ElementName", "Ethernet 1"),
        ("InstanceID", "5"),
        ("ResourceSubType", "E1000"),
        ("ResourceType", "10"),
    ],
];

/// A machine of one processor and 1 GiB that starts from the disk: whoever deploys it gives it what it needs.
fn descriptor(len: u64, capacity: u64, uuid: [u8; 16]) -> String {
    let uuid = hex::encode(uuid);
    let mut text = String::with_capacity(DESCRIPTOR_LEN);
    let written = write!(
        text,
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
    <File ovf:id="file1" ovf:href="{DISK}" ovf:size="{len}"/>
  </References>
  <DiskSection>
    <Info>The disk</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{capacity}" ovf:capacityAllocationUnits="byte" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <NetworkSection>
    <Info>The network</Info>
    <Network ovf:name="VM Network">
      <Description>The network of the machine</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="image-{uuid}">
    <Info>A machine that starts from the disk</Info>
    <Name>image-{uuid}</Name>
    <OperatingSystemSection ovf:id="102">
      <Info>Other, 64 bits</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>What it needs</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>
      </System>
"#
    );
    let item = |text: &mut String, item: &[(&str, &str)]| {
        text.push_str("      <Item>\n");
        for (name, value) in item {
            writeln!(text, "        <rasd:{name}>{value}</rasd:{name}>")?;
        }
        text.push_str("      </Item>\n");
        Ok(())
    };
    let written = written.and_then(|()| ITEMS.iter().try_for_each(|values| item(&mut text, values)));
    written.expect("a string takes what is written");
    text.push_str("    </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n");
    // White space may follow the last element.
    text.push_str(&" ".repeat(DESCRIPTOR_LEN.saturating_sub(text.len())));
    assert_eq!(
        text.len(),
        DESCRIPTOR_LEN,
        "the descriptor is shorter than what is set aside for it"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_is_xml_of_a_fixed_length() {
        for number in [0, u64::MAX] {
            let text = descriptor(number, number, [0xff; 16]);
            assert_eq!(text.len(), DESCRIPTOR_LEN);
            let document = roxmltree::Document::parse(&text).unwrap();
            let items = document
                .descendants()
                .filter(|node| node.has_tag_name(("http://schemas.dmtf.org/ovf/envelope/1", "Item")));
            for item in items {
                let names: Vec<_> = item
                    .children()
                    .filter(roxmltree::Node::is_element)
                    .map(|node| node.tag_name().name())
                    .collect();
                assert!(names.is_sorted(), "{names:?}");
            }
        }
    }
}
